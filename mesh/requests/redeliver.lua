#!lua flags=allow-oom
-- Delivers an entry again to the consumer for which it is pending.
-- The script also runs when memory is full (`allow-oom`), because it stores nothing new.
-- KEYS: stream
-- ARGV: consumer, id
-- Returns the number of deliveries with this one; 0 if the entry was deleted, or is pending for another consumer
local stream, consumer, id = KEYS[1], ARGV[1], ARGV[2]
-- The fourth item of `pending[1]` is the number of deliveries so far. XPENDING fails without the stream or its group.
local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
if pending.err or #pending == 0 then return 0 end
-- XCLAIM counts a delivery, and returns no entry if the entry was deleted. 0: however short a time the entry was idle.
local claimed = redis.call('XCLAIM', stream, 'workers', consumer, 0, id)
if not claimed[1] then return 0 end
return pending[1][4] + 1
