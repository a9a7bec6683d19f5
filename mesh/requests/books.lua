#!lua flags=allow-oom,no-writes
-- Reads the books, and the number of requests in flight, at one moment.
-- KEYS: books, stream, ...   (all possible request streams)
-- Returns {accepted, answered, expired, cancelled, dead, lost, in flight, waiting for their time}
local books = redis.call('HMGET', KEYS[1], 'accepted', 'answered', 'expired', 'cancelled', 'dead', 'lost')
local result, in_flight = {}, 0
for i = 1, 6 do result[i] = tonumber(books[i] or '0') end
for k = 2, #KEYS do in_flight = in_flight + redis.call('XLEN', KEYS[k]) end
result[7], result[8] = in_flight, redis.call('ZCARD', 'mesh:later')
return result
