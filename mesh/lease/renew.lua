#!lua flags=allow-oom
-- Renews a lease that is still this holder's, with its roster row and reply stream.
-- Where the server was emptied the lease is put back: that we can still speak as this epoch's user proves that nobody
-- was granted the database since. Without such users there is no proof, and the lease is lost. It is lost, too, where it
-- may have ended by itself: a renewal can lie in a buffer until its sender is long dead, and must not wake up its lease.
-- KEYS: lease, roster row, reply stream
-- ARGV: holder ("<epoch> <replica>"), lease ttl ms, state, 1 if the server enforces isolation, bus, database, class,
--       the moment (ms) until which the holder knows of its lease, then field, value, ... to put the row together anew
-- Returns {1 renewed | 2 put back | 0 lost, now ms}
local lease_key, row_key, replies_key = KEYS[1], KEYS[2], KEYS[3]
local holder, ttl, state, enforced = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local bus, database, class, known_until = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%.0f', now_ms)
local found, outcome = redis.call('GET', lease_key), 1
if not found and enforced and now_ms < known_until then
  redis.call('SET', lease_key, holder)
  redis.call('SELECT', database)
  redis.call('SET', 'db' .. database .. ':class', class, 'NX')
  redis.call('SELECT', bus)
  outcome = 2
elseif found ~= holder then
  return {0, now}
end
redis.call('PEXPIRE', lease_key, ttl)
redis.call('HSET', row_key, 'state', state, unpack(ARGV, 9))
-- The row outlives its lease a little: a gather waits for the successor rather than do without the database.
redis.call('PEXPIRE', row_key, math.floor(ttl * 4 / 3))
if redis.call('EXISTS', replies_key) == 0 then
  redis.call('XDEL', replies_key, redis.call('XADD', replies_key, '*', 'op', 'open'))
end
redis.call('PEXPIRE', replies_key, 10 * ttl)
return {outcome, now}
