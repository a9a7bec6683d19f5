#!lua flags=allow-oom
-- Says that work in progress is alive, and learns which of it is no longer ours.
-- KEYS: stream
-- ARGV: consumer, id, ...
-- Returns the ids that were taken over or ended
local stream, consumer, lost = KEYS[1], ARGV[1], {}
for i = 2, #ARGV do
  local id = ARGV[i]
  -- Only what is ours: a plain XCLAIM would steal back what another claimed while we slept.
  local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
  if not pending.err and #pending > 0 and #redis.call('XRANGE', stream, id, id) > 0 then
    redis.call('XCLAIM', stream, 'workers', consumer, 0, id, 'JUSTID')
  else
    lost[#lost + 1] = id
  end
end
return lost
