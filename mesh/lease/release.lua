#!lua flags=allow-oom
-- Gives a lease back. The roster row stays as "left" until it expires; requests to this class or database wait that
-- long for a successor.
-- KEYS: lease, roster row, request stream of the database, reply stream, submitted, committed
-- ARGV: holder, 1 to release even if requests wait
-- Returns 1 released, 0 another replica holds it or it has ended, -1 requests wait
local lease_key, row_key, requests_key = KEYS[1], KEYS[2], KEYS[3]
local replies_key, submitted_key, committed_key = KEYS[4], KEYS[5], KEYS[6]
if redis.call('GET', lease_key) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '1' and redis.call('XLEN', requests_key) > 0 then return -1 end
redis.call('DEL', lease_key, replies_key, submitted_key, committed_key)
redis.call('HSET', row_key, 'state', 'left')
return 1
