-- Records the schedule of an operation. If live replicas have different definitions, the one of the replica with the highest
-- epoch counts. So of two releases, the one that joined last decides.
-- KEYS: schedules, schedule
-- ARGV: name, epoch of the replica, definition, first tick (ms), number of databases
-- Returns the next tick (ms)
local schedules_key, schedule_key = KEYS[1], KEYS[2]
local name, epoch, definition, first_tick = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
-- The replicas write all that the key has, so a key that somebody has overwritten is deleted and written anew.
if redis.call('TYPE', schedule_key).ok ~= 'hash' then redis.call('DEL', schedule_key) end
-- The definition that the schedule has now, the epoch of the replica that wrote it, and the next tick.
local known, author_epoch, next = unpack(redis.call('HMGET', schedule_key, 'definition', 'epoch', 'next'))

-- Returns whether the replica with this epoch (a text) is live. A row that somebody has overwritten (`pcall`) counts as not
-- live.
local function is_live(epoch_text)
  for n = 0, tonumber(ARGV[5]) - 1 do
    local row_epoch, state = unpack(redis.pcall('HMGET', 'mesh:replica:' .. n, 'epoch', 'state'))
    if row_epoch == epoch_text and state ~= 'left' then return true end
  end
end

-- publish.lua gives the schedule an expiry when no live replica serves it any more. Now a replica does.
redis.call('PERSIST', schedule_key)
if next and (known == definition or tonumber(author_epoch) > epoch and is_live(author_epoch)) then
  -- The replica with the highest epoch becomes the author: while it is live, no replica with a lower epoch may replace the
  -- definition.
  if known == definition and tonumber(author_epoch) < epoch then redis.call('HSET', schedule_key, 'epoch', ARGV[2]) end
  redis.call('ZADD', schedules_key, next, name)
  return next
end
redis.call('HSET', schedule_key, 'definition', definition, 'epoch', ARGV[2], 'next', first_tick)
redis.call('ZADD', schedules_key, first_tick, name)
return first_tick
