#!lua flags=allow-oom,no-writes
-- Reads what a starting replica must know of the mesh and of every database, at one moment. The shared Redis user runs it.
-- KEYS: claim of the server (in database 0), format of the bus
-- ARGV: bus database, number of databases
-- Returns {claim or "", format of the bus or "", rows}, with one row for each database:
--   {number, lease or "", remaining ms of the lease, class or "", number of keys, state of the holder or "", format or ""}
local claim_key, format_key = KEYS[1], KEYS[2]
local bus, database_count = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('SELECT', 0)
local claim = redis.call('GET', claim_key)
redis.call('SELECT', bus)
local bus_format = redis.call('GET', format_key)
local rows = {}
for n = 0, database_count - 1 do
  redis.call('SELECT', bus)
  local lease = redis.call('GET', 'mesh:lease:' .. n)
  local left_ms = redis.call('PTTL', 'mesh:lease:' .. n)
  -- `pcall`: a row that somebody has overwritten with another type has no state.
  local state = redis.pcall('HMGET', 'mesh:replica:' .. n, 'state')[1]
  redis.call('SELECT', n)
  local class = redis.call('GET', 'db' .. n .. ':class')
  local data_format = redis.call('GET', 'db' .. n .. ':format')
  local key_count = redis.call('DBSIZE')
  -- The claim is a key of the mesh. Without this line it would look as if another program used database 0.
  if n == 0 and claim then key_count = key_count - 1 end
  rows[#rows + 1] = {n, lease or '', left_ms, class or '', key_count, state or '', data_format or ''}
end
redis.call('SELECT', bus)
return {claim or '', bus_format or '', rows}
