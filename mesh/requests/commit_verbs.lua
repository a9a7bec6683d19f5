-- Verbs of transactions beside those of Redis, for writes of many words. It stands inside commit.lua, where ARGV holds a
-- command's words from `first` (its verb) to `last`. A verb returns an error reply, or anything else.
--   set-all, ms, value, key, ...            SET each key to the value until that moment
--   zadd-all, key, score, member, ...       ZADD each member with that score
--   pair-all, hash, zset, name, text, ...   a name's first text becomes a field of the hash, any other a member
--                                           "name:text" of the zset
--   unpair-all, hash, zset, name, text, ... remove these pairs, wherever they are
--   keep, key, ms                           let the key live at least until then, once all is written
local function make_verbs(keep)
  -- Lua can pass some 8000 words to a function.
  local PASSED = 2000

  local function set_each(first, last, value, ms)
    for k = first, last do
      local result = redis.pcall('SET', ARGV[k], value, 'PXAT', ms)
      if result.err then return result end
    end
  end

  -- One command, where the server has it: Valkey from 9.1, Redis from 8.4.
  local has_msetex = true
  local function set_together(first, last, value, ms)
    local words, n = {}, 0
    for k = first, last do
      words[n + 1], words[n + 2] = ARGV[k], value
      n = n + 2
    end
    words[n + 1], words[n + 2] = 'PXAT', ms
    local result = redis.pcall('MSETEX', last - first + 1, unpack(words))
    has_msetex = type(result) ~= 'table'
  end

  local function set_all(first, last)
    local ms, value = ARGV[first + 1], ARGV[first + 2]
    for begin = first + 3, last, PASSED do
      local till = math.min(begin + PASSED - 1, last)
      if has_msetex then set_together(begin, till, value, ms) end
      if not has_msetex then
        local failed = set_each(begin, till, value, ms)
        if failed then return failed end
      end
    end
  end

  local function zadd_all(first, last)
    local score = ARGV[first + 2]
    for begin = first + 3, last, PASSED do
      local words, n = {}, 0
      for k = begin, math.min(begin + PASSED - 1, last) do
        words[n + 1], words[n + 2] = score, ARGV[k]
        n = n + 2
      end
      local result = redis.pcall('ZADD', ARGV[first + 1], unpack(words))
      if type(result) == 'table' then return result end
    end
  end

  -- Returns the texts that the hash has under the names of some pairs, and the names.
  local function texts_of(hash, first, last)
    local names = {}
    for k = first, last, 2 do names[#names + 1] = ARGV[k] end
    return redis.call('HMGET', hash, unpack(names)), names
  end

  -- A field costs a third of a member, and most names have one text only.
  local function pair_all(first, last)
    local hash, zset = ARGV[first + 1], ARGV[first + 2]
    for begin = first + 3, last, PASSED do
      local before, names = texts_of(hash, begin, math.min(begin + PASSED - 1, last))
      local now, fields, n, members, m = {}, {}, 0, {}, 0
      for i, name in ipairs(names) do
        local text, other = ARGV[begin + 2 * i - 1], before[i] or now[name]
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
    local hash, zset = ARGV[first + 1], ARGV[first + 2]
    for begin = first + 3, last, PASSED do
      local before, names = texts_of(hash, begin, math.min(begin + PASSED - 1, last))
      local fields, members = {}, {}
      for i, name in ipairs(names) do
        local text = ARGV[begin + 2 * i - 1]
        if before[i] == text then fields[#fields + 1] = name end
        members[i] = name .. ':' .. text
      end
      if #fields > 0 then redis.call('HDEL', hash, unpack(fields)) end
      redis.call('ZREM', zset, unpack(members))
    end
  end

  return {['set-all'] = set_all, ['zadd-all'] = zadd_all, ['pair-all'] = pair_all, ['unpair-all'] = unpair_all, keep = keep}
end
