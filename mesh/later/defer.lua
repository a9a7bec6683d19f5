#!lua flags=allow-oom
-- Moves a request from its stream to mesh:later. There it waits for its next try; or for a moment, so that another replica of
-- its class may read it afterwards. The request keeps the time at which it was sent, and its deadline.
-- The script also runs when memory is full (`allow-oom`), because the request was accepted before.
-- KEYS: stream, later
-- ARGV: id, consumer, pause (ms), number of failed tries so far, error of the last try or the reason for handing on. The
--       field `error` of the waiting request gets the last of these, for people
-- Returns when the request is due (ms), or 0 if it is not pending for this consumer
local stream, later_key = KEYS[1], KEYS[2]
local id, consumer, pause_ms, failed_tries, reason = unpack(ARGV)

-- This part defines `append`, which the part options.lua needs.
--[[ ../requests/append.lua ]]

-- This part defines `make_options`.
--[[ ../requests/options.lua ]]

-- This part defines `read_pending` and `remove_entry`.
--[[ taken.lua ]]
local flat, fields, name = read_pending(stream, id, consumer)
if not flat then return 0 end
local time = redis.call('TIME')
local due = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + pause_ms)
local entry_key = later_key .. ':' .. name
redis.call('HSET', entry_key, unpack(flat))
redis.call('HSET', entry_key, 'to', string.match(stream, '[^:]+$'), 'first', fields.first, 'try', failed_tries, 'error',
  reason)
redis.call('ZADD', later_key, due, name)
remove_entry(stream, id)
-- The idempotency key of the request, if it has one, lives at least for the pause and the time `keep` from now on.
make_options().moved(fields, later_key, name, pause_ms)
return tonumber(due)
