#!lua flags=allow-oom
-- Leaves a request pending, because there is no room for it. The replica no longer keeps the request alive. So after
-- `claim_idle_ms` a consumer claims it and tries again. The present delivery does not count.
-- The script also runs when memory is full (`allow-oom`), because it stores nothing new.
-- KEYS: stream
-- ARGV: consumer, id
-- Returns 1; 0 if the entry was deleted, or is pending for another consumer
local stream, consumer, id = KEYS[1], ARGV[1], ARGV[2]
-- The fourth item of `pending[1]` is the number of deliveries, this one included. XPENDING fails without the stream or its
-- group. The 0 after `consumer` takes the entry however short a time it was idle.
local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
if pending.err or #pending == 0 then return 0 end
redis.call('XCLAIM', stream, 'workers', consumer, 0, id, 'RETRYCOUNT', math.max(pending[1][4] - 1, 0), 'JUSTID')
return 1
