-- What databases hold, for the scripts that change it. Two sorted sets by the moment (ms) at which something ends:
--   db{n}:written  the keys of database n; "*" stands for keys beyond MOST_NAMED
--   mesh:written   databases; each ends with its last key
local MOST_NAMED = 256

-- Lets such a set end with its last element. Returns that moment; nil if there is none.
local function end_with_last(set)
  local last = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  if last == 'inf' then
    redis.call('PERSIST', set)
  elseif last then
    redis.call('PEXPIREAT', set, last)
  end
  return last
end

-- Notes these keys of the selected database. `unnamed`, unless it is nil, is the moment until which the database has keys
-- beyond these.
-- Returns the moment at which the last of all its keys ends; nil if it has none.
local function note_keys(set, names, unnamed, now)
  local words, n, room = {}, 0, MOST_NAMED - redis.call('ZCARD', set)
  for name in pairs(names) do
    local ends = redis.call('PEXPIRETIME', name)
    if ends == -2 then
      redis.call('ZREM', set, name)
    elseif n < 2 * room then
      words[n + 1], words[n + 2] = ends == -1 and '+inf' or ends, name
      n = n + 2
    else
      unnamed = math.max(unnamed or 0, ends == -1 and math.huge or ends)
    end
  end
  if n > 0 then redis.call('ZADD', set, unpack(words)) end
  if unnamed then redis.call('ZADD', set, 'GT', unnamed == math.huge and '+inf' or unnamed, '*') end
  redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
  return end_with_last(set)
end

-- Notes in the selected bus until when a database holds data; nil: it holds none.
local function note_database(database, last)
  if last then
    redis.call('ZADD', 'mesh:written', last, database)
  else
    redis.call('ZREM', 'mesh:written', database)
  end
  end_with_last('mesh:written')
end
