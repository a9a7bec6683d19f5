#!lua flags=allow-oom
-- Renews a lease that is still this holder's, with its roster row and reply stream.
-- KEYS: lease, roster row, reply stream, submitted
-- ARGV: holder ("<epoch> <replica>"), lease ttl ms, state, then field, value, ... to put the row together anew
-- Returns {1 or 0, now ms}
local lease_key, row_key, replies_key, submitted_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local holder, ttl, state = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
if redis.call('GET', lease_key) ~= holder then return {0, now} end
redis.call('PEXPIRE', lease_key, ttl)
redis.call('HSET', row_key, 'state', state, unpack(ARGV, 4))
redis.call('PEXPIRE', row_key, ttl)
if redis.call('EXISTS', replies_key) == 0 then
  redis.call('XDEL', replies_key, redis.call('XADD', replies_key, '*', 'op', 'open'))
end
redis.call('PEXPIRE', replies_key, 10 * ttl)
redis.call('PEXPIRE', submitted_key, 10 * ttl)
return {1, now}
