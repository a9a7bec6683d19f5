#!lua flags=allow-oom
-- Moves a request of a paused operation from its stream to mesh:later, where it waits until the operation is resumed.
-- The script also runs when memory is full (`allow-oom`), because the request was accepted before.
-- KEYS: stream, later, paused operations, parked requests of the operation
-- ARGV: id, consumer, operation, maximum number of waiting requests
-- Returns parked; goes-on if the operation is no longer paused; full if no more requests may wait; not-mine if the request
--       is not pending for this consumer
local stream, later_key, paused_key, parked_key = unpack(KEYS)
local id, consumer, op, later_bound = unpack(ARGV)
-- The replica may not know yet that the pause has ended: it learns of this with its next renewal.
if redis.call('HEXISTS', paused_key, op) == 0 then return 'goes-on' end
if redis.call('ZCARD', later_key) >= tonumber(later_bound) then return 'full' end

-- This part defines `append`, which the part options.lua needs.
--[[ ../requests/append.lua ]]

-- This part defines `make_options`.
--[[ ../requests/options.lua ]]

-- This part defines `read_pending` and `remove_entry`.
--[[ taken.lua ]]
local flat, fields, name = read_pending(stream, id, consumer)
if not flat then return 'not-mine' end
local entry_key, deadline = later_key .. ':' .. name, fields.deadline or '0'
redis.call('HSET', entry_key, unpack(flat))
redis.call('HSET', entry_key, 'to', string.match(stream, '[^:]+$'), 'first', fields.first, 'parked', op)
-- The request is due at its deadline, so that it can expire although the operation is paused.
redis.call('ZADD', later_key, deadline == '0' and '+inf' or deadline, name)
-- The score is the time of acceptance (ms). For a request that was sent for later, it is the time at which it was woken.
redis.call('ZADD', parked_key, string.match(fields.first, '^%d+'), name)
remove_entry(stream, id)
-- With a `ttl_ms` of 0, the idempotency key keeps its expiry, but lives at least for the time `keep` of its request from now
-- on.
make_options().moved(fields, later_key, name, 0)
return 'parked'
