#!lua flags=allow-oom
-- Pauses an operation or resumes it, and adds an entry to the audit log. Each replica learns of the change with its next
-- renewal. When an operation is resumed, its parked requests are due since the time of their acceptance. So a replica
-- wakes them, in this order, as soon as a renewal tells it that something is due.
-- The script also runs when memory is full (`allow-oom`), so that an operator can act then. It stores little.
-- KEYS: paused operations, audit log, parked requests of the operation, later
-- ARGV: 1 to pause or 0 to resume, operation, actor, address of the actor, maximum length of the audit log
-- Returns 1 if this changed the state of the operation, else 0
local paused_key, audit_key, parked_key, later_key = unpack(KEYS)
local is_pause, op, actor, source = ARGV[1] == '1', ARGV[2], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local changed
if is_pause then
  changed = redis.call('HSETNX', paused_key, op, now_ms .. ' ' .. actor)
else
  changed = redis.call('HDEL', paused_key, op)
  -- Each name, and the time (ms) of acceptance. This time is later than now if the server's clock has stepped back.
  -- Lua's `unpack` fails at about 8000 words, so ZADD gets a part of them at a time.
  local parked, MOST_UNPACKED = redis.call('ZRANGE', parked_key, 0, -1, 'WITHSCORES'), 4000
  for first = 1, #parked, MOST_UNPACKED do
    local words = {}
    for k = first, math.min(first + MOST_UNPACKED - 1, #parked), 2 do
      words[#words + 1] = string.format('%.0f', math.min(parked[k + 1], now_ms))
      words[#words + 1] = parked[k]
    end
    -- XX: only a request that is still in mesh:later gets a new time.
    redis.call('ZADD', later_key, 'XX', unpack(words))
  end
  redis.call('DEL', parked_key)
end
if changed == 1 then
  redis.call('XADD', audit_key, 'MAXLEN', '~', ARGV[5], '*', 'event',
    is_pause and 'operation paused' or 'operation resumed', 'actor', actor, 'source', source, 'op', op)
end
return changed
