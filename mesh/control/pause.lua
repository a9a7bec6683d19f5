#!lua flags=allow-oom
-- Pauses an operation, or resumes it, and says so in the audit log. Each replica learns of it with its next renewal.
-- KEYS: paused operations, audit log
-- ARGV: 1 to pause or 0 to resume, operation, actor, source, length of the audit log
-- Returns 1 if that changed something
local paused_key, audit_key = KEYS[1], KEYS[2]
local pause, op, actor, source = ARGV[1] == '1', ARGV[2], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local changed
if pause then
  changed = redis.call('HSETNX', paused_key, op, now .. ' ' .. actor)
else
  changed = redis.call('HDEL', paused_key, op)
end
if changed == 1 then
  redis.call('XADD', audit_key, 'MAXLEN', '~', ARGV[5], '*', 'event', pause and 'operation paused' or 'operation resumed',
    'actor', actor, 'source', source, 'op', op)
end
return changed
