#!lua flags=allow-oom
-- Resets the idle time of events in progress, so that no other consumer claims them.
-- KEYS: stream
-- ARGV: group, consumer, id, ...
-- Returns how many this consumer still has
local stream, group, consumer, kept = KEYS[1], ARGV[1], ARGV[2], 0
for i = 3, #ARGV do
  -- XCLAIM alone would take back an event that another consumer claimed while this one slept.
  if #redis.call('XPENDING', stream, group, ARGV[i], ARGV[i], 1, consumer) > 0 then
    redis.call('XCLAIM', stream, group, consumer, 0, ARGV[i], 'JUSTID')
    kept = kept + 1
  end
end
return kept
