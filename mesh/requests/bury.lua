#!lua flags=allow-oom
-- Gives a request up, in one step: writes the dead letter, answers the caller, acknowledges the request and counts it in the
-- books. The request ends even when the dead letter or the reply cannot be written, because a key holds another type.
-- The script also runs when memory is full (`allow-oom`), because the dead letter takes the place of the request.
-- KEYS: books, dead letters, request stream, and the reply stream if there is one
-- ARGV: id, consumer, reason, deliveries, reply status, reply body, maximum length of the dead letters
-- Returns 1 if the request was buried, 0 if it is not pending for this consumer
local books_key, dead_key, stream, replies_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, consumer, reason, deliveries, status, body, most_letters = unpack(ARGV)

-- This part defines `append`, which the part options.lua needs.
--[[ append.lua ]]

-- This part defines `make_options`.
--[[ options.lua ]]

local options = make_options()
-- XPENDING fails if somebody has deleted the stream or its group. Then the request is not pending. If it does not fail, the
-- later commands on this stream cannot fail either.
local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
if pending.err or #pending == 0 then return 0 end
local entry = redis.call('XRANGE', stream, id, id)[1]
redis.call('XACK', stream, 'workers', id)
-- The entry was deleted from outside: count_by_hand.lua counts the request as lost.
if not entry then return 0 end
-- Lua's `unpack` fails at about 8000 words, and an entry that was written by hand may have more. The dead letter has only the
-- first 4000 words of such an entry.
local flat, request_name, op = {unpack(entry[2], 1, 4000)}, '', ''
for i = 1, #flat, 2 do
  if flat[i] == 'request' then request_name = flat[i + 1] end
  if flat[i] == 'op' then op = flat[i + 1] end
end
-- `pcall` here and below: if a key holds another type, the request ends without its letter, its reply or its count.
redis.pcall('XADD', dead_key, 'MAXLEN', '~', most_letters, '*', 'kind', 'request', 'stream', stream, 'id', id, 'reason', reason,
  'deliveries', deliveries, unpack(flat))
options.ended(options.named(flat), {status = status, body = body, from = consumer, asked = id})
if replies_key then
  redis.pcall('XADD', replies_key, 'NOMKSTREAM', '*', 'request', request_name, 'op', op, 'from', consumer, 'status', status,
    'forwards', '0', 'body', body, 'asked', id)
end
redis.call('XDEL', stream, id)
redis.pcall('HINCRBY', books_key, 'dead', 1)
return 1
