-- Notes what the databases hold. A part of grant.lua and commit.lua. There are two sorted sets. The score of a member is the
-- moment (ms) at which the member ends:
--   db{n}:written  at most MOST_NAMED keys of database n by their names, and "*" for all its other keys
--   mesh:written   the databases that hold data; each ends with its last key
-- With a larger MOST_NAMED, the end of each key is known in more databases, but each set takes more memory.
local MOST_NAMED = 256

-- Sets the expiry of such a set to the moment at which its last member ends, or to none if that member never ends ("inf").
-- Returns that moment; nil if the set is empty.
local function end_with_last(written_set)
  local last_end = redis.call('ZRANGE', written_set, -1, -1, 'WITHSCORES')[2]
  if last_end == 'inf' then
    redis.call('PERSIST', written_set)
  elseif last_end then
    redis.call('PEXPIREAT', written_set, last_end)
  end
  return last_end
end

-- Runs a command on one of the two sets. If somebody has overwritten the set with another type, deletes it and runs the command
-- again. Returns the answer, and true if the set was deleted.
local function on_set(...)
  local answer = redis.pcall(...)
  if type(answer) ~= 'table' or not string.find(tostring(answer.err), 'WRONGTYPE', 1, true) then return answer end
  redis.call('DEL', (select(2, ...)))
  return redis.call(...), true
end

-- Notes keys of the selected database. `names` is a table with the name of each key as an index. Its value is the moment (ms)
-- at which the key ends, or true if this is to be read. `unnamed_end` is the moment at which the last of the other keys ends;
-- nil if there are no others.
-- Returns the moment at which the last of all keys ends; nil if the database has no keys.
local function note_keys(written_set, names, unnamed_end, now)
  -- `words` has two words for each key. PEXPIRETIME answers -2 if there is no such key, and -1 if the key never expires.
  local named_count, was_deleted = on_set('ZCARD', written_set)
  -- Nobody knows any more until when the other keys live. The next grant notes all keys.
  if was_deleted then unnamed_end = math.huge end
  local words, word_count, room = {}, 0, MOST_NAMED - named_count
  for name, known_end in pairs(names) do
    local end_ms = known_end == true and redis.call('PEXPIRETIME', name) or known_end
    if end_ms == -2 then
      redis.call('ZREM', written_set, name)
    elseif word_count < 2 * room then
      words[word_count + 1], words[word_count + 2] = end_ms == -1 and '+inf' or end_ms, name
      word_count = word_count + 2
    else
      unnamed_end = math.max(unnamed_end or 0, end_ms == -1 and math.huge or end_ms)
    end
  end
  if word_count > 0 then redis.call('ZADD', written_set, unpack(words)) end
  if unnamed_end then redis.call('ZADD', written_set, 'GT', unnamed_end == math.huge and '+inf' or unnamed_end, '*') end
  redis.call('ZREMRANGEBYSCORE', written_set, '-inf', now)
  return end_with_last(written_set)
end

-- Notes that a database holds data until the moment `last_end`; nil: it holds none. The bus database must be selected.
local function note_database(database, last_end)
  if last_end then
    on_set('ZADD', 'mesh:written', last_end, database)
  else
    on_set('ZREM', 'mesh:written', database)
  end
  end_with_last('mesh:written')
end
