-- Notes what the databases hold. A part of grant.lua and commit.lua. There are two sorted sets. The score of a member is the
-- moment (ms) at which the member ends:
--   db{n}:written  at most MOST_NAMED keys of database n by their names, and "*" for all its other keys
--   mesh:written   the databases that hold data; each ends with its last key
local MOST_NAMED = 256

-- Sets the expiry of such a set to the moment at which its last member ends. Returns that moment; nil if the set is empty.
local function end_with_last(set)
  local last = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  if last == 'inf' then
    redis.call('PERSIST', set)
  elseif last then
    redis.call('PEXPIREAT', set, last)
  end
  return last
end

-- Notes keys of the selected database. `names` is a table with the name of each key as an index. `unnamed` is the moment at
-- which the last of the other keys ends; nil if there are no others.
-- Returns the moment at which the last of all keys ends; nil if the database has no keys.
local function note_keys(set, names, unnamed, now)
  -- `n` is the number of `words`, which are two for each key.
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

-- Notes that a database holds data until the moment `last`; nil: it holds none. The bus database must be selected.
local function note_database(database, last)
  if last then
    redis.call('ZADD', 'mesh:written', last, database)
  else
    redis.call('ZREM', 'mesh:written', database)
  end
  end_with_last('mesh:written')
end
