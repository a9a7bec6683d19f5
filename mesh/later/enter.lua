#!lua flags=allow-oom
-- Applies the limit of an operation to a request that came without the limit. Takes the request from its stream, and then
-- appends it again or lets it wait, as the limit says.
-- The script also runs when memory is full (`allow-oom`), because the request was accepted before.
-- KEYS: stream, later
-- ARGV: id, consumer, limit as limits.lua reads it, maximum number of waiting requests
-- Returns {"placed", ""}, {"not-mine", ""} if the request is not pending for this consumer, or {code, what the code is
--       about} if it cannot be placed now; `refusal` of refusals.py knows the codes
local stream, later_key = KEYS[1], KEYS[2]
local id, consumer, limit, later_bound = unpack(ARGV)

-- This part defines `append`, which the part options.lua needs.
--[[ ../requests/append.lua ]]

-- This part defines `make_options`.
--[[ ../requests/options.lua ]]

-- This part defines `read_pending` and `remove_entry`.
--[[ taken.lua ]]
local options = make_options()
local entry = redis.call('XRANGE', stream, id, id)[1]
if not entry then return {'not-mine', ''} end
local entry_fields = options.named(entry[2])
local deadline = entry_fields.deadline or '0'
local code, about = options.limits().refusal(limit, deadline, tonumber(later_bound))
-- A request without a caller that comes too soon is not refused but waits, because nobody would learn of a refusal.
if code and not (code == 'limited' and (entry_fields.reply_to or '') == '') then return {code, about} end
local flat, fields, name = read_pending(stream, id, consumer)
if not flat then return {'not-mine', ''} end
if not entry_fields.first then flat[#flat + 1], flat[#flat + 2] = 'first', id end
local to = string.match(stream, '[^:]+$')
-- The id of the new entry (an error if the stream takes no entry); nothing if the request waits.
local new_id = options.limits().place(limit, name, to, flat, deadline)
-- The stream takes no more entries if somebody has written an entry with the highest possible id by hand.
if type(new_id) == 'table' then return {'wrong-type', stream} end
remove_entry(stream, id)
-- With 0, the idempotency key keeps its expiry, but lives at least for the time `keep` of its request from now on.
if fields.once then options.once.moved(fields, new_id and stream or later_key, new_id or name, 0) end
return {'placed', ''}
