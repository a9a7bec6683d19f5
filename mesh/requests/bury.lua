#!lua flags=allow-oom
-- Gives a request up: dead letter, an answer to whoever waits, acknowledgement, books; all or nothing.
-- KEYS: books, dead letters, request stream, reply stream if there is one
-- ARGV: id, consumer, reason, deliveries, reply status, reply body, most dead letters kept
-- Returns 1 buried, 0 not ours
local books_key, dead_key, stream, replies_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, consumer, reason, deliveries = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
if pending.err or #pending == 0 then return 0 end
local entry = redis.call('XRANGE', stream, id, id)[1]
redis.call('XACK', stream, 'workers', id)
if not entry then return 0 end
local fields, key, op = entry[2], '', ''
for i = 1, #fields, 2 do
  if fields[i] == 'request' then key = fields[i + 1] end
  if fields[i] == 'op' then op = fields[i + 1] end
end
redis.call('XADD', dead_key, 'MAXLEN', '~', ARGV[7], '*', 'stream', stream, 'id', id, 'reason', reason,
  'deliveries', deliveries, unpack(fields))
if replies_key then
  redis.call('XADD', replies_key, 'NOMKSTREAM', '*', 'request', key, 'op', op, 'from', consumer, 'status', ARGV[5],
    'forwards', '0', 'body', ARGV[6])
end
redis.call('XDEL', stream, id)
redis.call('HINCRBY', books_key, 'dead', 1)
return 1
