#!lua flags=allow-oom
-- Keeps entries in progress alive, and finds those that this consumer no longer has.
-- KEYS: stream
-- ARGV: consumer, id, ...
-- Returns the ids that another consumer has claimed, or that have ended
local stream, consumer, lost = KEYS[1], ARGV[1], {}
for i = 2, #ARGV do
  local id = ARGV[i]
  -- Claim only our own entries: XCLAIM alone would take back what another consumer claimed while we were stopped.
  local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
  if not pending.err and #pending > 0 and #redis.call('XRANGE', stream, id, id) > 0 then
    redis.call('XCLAIM', stream, 'workers', consumer, 0, id, 'JUSTID')
  else
    lost[#lost + 1] = id
  end
end
return lost
