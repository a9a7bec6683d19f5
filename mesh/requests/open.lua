#!lua flags=allow-oom
-- Creates missing streams and groups. If a stream was deleted (DEL, FLUSHALL), its requests count as lost in the books.
-- KEYS: books, stream, ...   (all possible request streams)
-- ARGV: how many of the streams, from the first, to create
local books_key = KEYS[1]
for k = 2, 1 + tonumber(ARGV[1]) do
  pcall(redis.call, 'XGROUP', 'CREATE', KEYS[k], 'workers', '0', 'MKSTREAM')
end
local waiting = 0
for k = 2, #KEYS do waiting = waiting + redis.call('XLEN', KEYS[k]) end
local books = redis.call('HMGET', books_key, 'accepted', 'answered', 'expired', 'cancelled', 'dead', 'lost')
local missing = tonumber(books[1] or '0') - waiting
for i = 2, 6 do missing = missing - tonumber(books[i] or '0') end
if missing ~= 0 then redis.call('HINCRBY', books_key, 'lost', missing) end
return missing
