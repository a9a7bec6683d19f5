#!lua flags=allow-oom,no-writes
-- Reads, at one moment, the databases that are not live, and that hold data or whose holder is expected back.
-- KEYS: databases that hold data (mesh:written)
-- ARGV: number of databases to look at
-- Returns one row for each: {database, its class if its holder is expected back or else "", 1 if it holds data or else 0}
local written_key = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The databases that hold data, by their number as text: their last key has not expired yet.
local holds = {}
for _, n in ipairs(redis.call('ZRANGEBYSCORE', written_key, '(' .. now, '+inf')) do holds[n] = 1 end
local rows = {}
for n = 0, tonumber(ARGV[1]) - 1 do
  -- The key mesh:expected:{n} exists while the holder is there or is expected back, and mesh:replica:{n} while n is live.
  local class, has_data = redis.call('GET', 'mesh:expected:' .. n), holds[tostring(n)]
  if (class or has_data) and redis.call('EXISTS', 'mesh:replica:' .. n) == 0 then
    rows[#rows + 1] = {n, class or '', has_data or 0}
  end
end
return rows
