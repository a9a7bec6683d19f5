#!lua flags=allow-oom
-- Resets the idle time of entries in progress, so that no other consumer claims them.
-- The script also runs when memory is full (`allow-oom`), because it stores nothing new.
-- KEYS: stream
-- ARGV: group, consumer, id, ...
-- Returns the ids that this consumer no longer has, because they were claimed or removed
local stream, group, consumer, lost = KEYS[1], ARGV[1], ARGV[2], {}
for i = 3, #ARGV do  -- the ids
  local id = ARGV[i]
  -- XCLAIM alone would take back an entry that another consumer claimed while this one slept. XPENDING fails if somebody has
  -- deleted the stream or its group: then the entry is lost, too.
  local pending = redis.pcall('XPENDING', stream, group, id, id, 1, consumer)
  if not pending.err and #pending > 0 and #redis.call('XRANGE', stream, id, id) > 0 then
    redis.call('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')
  else
    lost[#lost + 1] = id
  end
end
return lost
