#!lua flags=allow-oom,no-writes
-- Reads the books, and the number of requests in flight, at one moment.
-- KEYS: books, stream, ...   (all possible request streams)
-- Returns {accepted, answered, expired, cancelled, dead, lost, in flight}
local books = redis.call('HMGET', KEYS[1], 'accepted', 'answered', 'expired', 'cancelled', 'dead', 'lost')
local result, waiting = {}, 0
for i = 1, 6 do result[i] = tonumber(books[i] or '0') end
for k = 2, #KEYS do waiting = waiting + redis.call('XLEN', KEYS[k]) end
result[7] = waiting
return result
