#!lua flags=allow-oom,no-writes
-- Reads which databases are not live, and hold data or have a holder that is expected back, at one moment.
-- KEYS: written
-- ARGV: number of databases
-- Returns one row per such database: {database, its class while it is expected back or "", 1 if it holds data else 0}
local written_key = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holds = {}
for _, n in ipairs(redis.call('ZRANGEBYSCORE', written_key, '(' .. now, '+inf')) do holds[n] = 1 end
local rows = {}
for n = 0, tonumber(ARGV[1]) - 1 do
  local class, has_data = redis.call('GET', 'mesh:expected:' .. n), holds[tostring(n)]
  if (class or has_data) and redis.call('EXISTS', 'mesh:replica:' .. n) == 0 then
    rows[#rows + 1] = {n, class or '', has_data or 0}
  end
end
return rows
