-- Tells a starting replica about every database at one moment. Runs as the shared user.
-- ARGV: bus database, number of databases
-- Returns one row per database: {number, lease or "", its PTTL, class or "", number of keys, holder's state or ""}
local bus, databases = tonumber(ARGV[1]), tonumber(ARGV[2])
local rows = {}
for n = 0, databases - 1 do
  redis.call('SELECT', bus)
  local lease = redis.call('GET', 'mesh:lease:' .. n)
  local pttl = redis.call('PTTL', 'mesh:lease:' .. n)
  local state = redis.call('HGET', 'mesh:replica:' .. n, 'state')
  redis.call('SELECT', n)
  local class = redis.call('GET', 'db' .. n .. ':class')
  rows[#rows + 1] = {n, lease or '', pttl, class or '', redis.call('DBSIZE'), state or ''}
end
redis.call('SELECT', bus)
return rows
