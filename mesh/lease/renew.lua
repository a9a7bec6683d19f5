#!lua flags=allow-oom
-- Renews a lease, with its roster row and reply stream, if this holder still has it.
-- If the server was emptied, the lease is missing, and this script restores it under two conditions. First, the server
-- enforces isolation. Then only the Redis user of this epoch can run this script, so no other replica was granted the
-- database since. Second, the lease cannot have ended by itself before now. This matters because a renewal may lie in a
-- buffer until its sender is long dead. If a condition does not hold, the lease is lost.
-- The script also runs when memory is full (`allow-oom`), so that replicas keep their leases. Then they still answer the
-- requests that were accepted, which frees memory.
-- KEYS: lease, roster row, reply stream, expected, paused operations, order to drain, later, schedules
-- ARGV:
--   1 to 3    holder ("<epoch> <replica>"), lease ttl (ms), state of the replica
--   4         1 if the server enforces isolation, else 0
--   5 to 7    bus database, database, class
--   8         end of the lease as the holder knows it (ms of Redis's clock)
--   9         how long after its lease the holder is expected back (ms)
--   from 10   field, value, ... of the whole roster row
-- Returns {outcome, now in ms}. The outcome is 1 (renewed), 2 (restored) or 0 (lost). Unless the lease is lost, more
--       follows: when (ms) a request or a schedule is due next, or ""; 1 if the replica should drain, else 0; each paused
--       operation
local lease_key, row_key, replies_key, expected_key, paused_key, drain_key, later_key, schedules_key = unpack(KEYS)
local holder, ttl, state, is_enforced = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local bus, database, class, known_until = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%.0f', now_ms)  -- the same as text, for the answer
local found_holder, outcome = redis.call('GET', lease_key), 1
if not found_holder and is_enforced and now_ms < known_until then
  redis.call('SET', lease_key, holder)
  -- The server was emptied, so the class of the database is gone, too.
  redis.call('SELECT', database)
  redis.call('SET', 'db' .. database .. ':class', class, 'NX')
  redis.call('SELECT', bus)
  outcome = 2
elseif found_holder ~= holder then
  return {0, now}
end
redis.call('PEXPIRE', lease_key, ttl)
-- The fields of the roster row begin at ARGV[10].
local count_or_error = redis.pcall('HSET', row_key, 'state', state, unpack(ARGV, 10))
if type(count_or_error) == 'table' then
  -- Somebody has overwritten the row with a value of another type. All of its fields are known here.
  redis.call('DEL', row_key)
  redis.call('HSET', row_key, 'state', state, unpack(ARGV, 10))
end
-- The row ends a third of the ttl after the lease. In that time a successor may take the database, so a gather waits for the
-- successor instead of leaving the database out.
redis.call('PEXPIRE', row_key, math.floor(ttl * 4 / 3))
redis.call('SET', expected_key, class, 'PX', ttl + tonumber(ARGV[9]))
-- An empty stream, because no reply creates it: see grant.lua.
-- If somebody has overwritten the stream, its replies are lost; the next ones need a stream.
if redis.call('TYPE', replies_key).ok ~= 'stream' then
  redis.call('DEL', replies_key)
  redis.call('XDEL', replies_key, redis.call('XADD', replies_key, '*', 'op', 'open'))
end
redis.call('PEXPIRE', replies_key, 10 * ttl)  -- grant.lua says why ten

-- This part defines `next_due`.
--[[ ../later/next_due.lua ]]

-- DEL answers 1 if the key was there: an operator has asked this replica to drain, and is told so only once.
local answer = {outcome, now, next_due(later_key, schedules_key), redis.call('DEL', drain_key)}
-- No operation is paused while somebody has overwritten the key.
for _, op in ipairs(redis.pcall('HKEYS', paused_key)) do answer[#answer + 1] = op end
return answer
