-- Verbs of transactions that keep an index of pairs of a name and a text. The first text of a name becomes a field of a
-- hash, any other a member "name:text" of a sorted set: a field costs a third of a member, and most names have one text.
--   pair-all, hash, zset, name, text, ...     add these pairs
--   unpair-all, hash, zset, name, text, ...   remove these pairs, wherever they are
-- It stands inside commit_verbs.lua, and uses `PASSED` and `verbs` of that file, and `frees`.

frees['unpair-all'] = true

-- Returns the texts that the hash has under the names of some pairs, and the names.
local function texts_of(hash, first, last)
  local names = {}
  for k = first, last, 2 do names[#names + 1] = tx[k] end
  return redis.call('HMGET', hash, unpack(names)), names
end

local function pair_all(first, last)
  local hash, zset = tx[first + 1], tx[first + 2]
  for begin = first + 3, last, PASSED do
    local before, names = texts_of(hash, begin, math.min(begin + PASSED - 1, last))
    local now, fields, n, members, m = {}, {}, 0, {}, 0
    for i, name in ipairs(names) do
      local text, other = tx[begin + 2 * i - 1], before[i] or now[name]
      if not other then
        now[name] = text
        fields[n + 1], fields[n + 2] = name, text
        n = n + 2
      elseif other ~= text then
        members[m + 1], members[m + 2] = '0', name .. ':' .. text
        m = m + 2
      end
    end
    if n > 0 then redis.call('HSET', hash, unpack(fields)) end
    if m > 0 then redis.call('ZADD', zset, unpack(members)) end
  end
end

local function unpair_all(first, last)
  local hash, zset = tx[first + 1], tx[first + 2]
  for begin = first + 3, last, PASSED do
    local before, names = texts_of(hash, begin, math.min(begin + PASSED - 1, last))
    local fields, members = {}, {}
    for i, name in ipairs(names) do
      local text = tx[begin + 2 * i - 1]
      if before[i] == text then fields[#fields + 1] = name end
      members[i] = name .. ':' .. text
    end
    if #fields > 0 then redis.call('HDEL', hash, unpack(fields)) end
    redis.call('ZREM', zset, unpack(members))
  end
end

verbs['pair-all'], verbs['unpair-all'] = pair_all, unpair_all
