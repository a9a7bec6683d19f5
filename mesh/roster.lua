#!lua flags=allow-oom,no-writes
-- Reads every roster row at one moment.
-- ARGV: number of databases to look at
-- Returns one list for each roster row: {database, 1 if it is leased or else 0, field, value, ...}
local rows = {}
for n = 0, tonumber(ARGV[1]) - 1 do
  local row = redis.pcall('HGETALL', 'mesh:replica:' .. n)  -- has no words if somebody has overwritten the row
  if #row > 0 then
    -- A row stays after its lease until the row expires (see grant.lua), so it does not tell whether the database is leased.
    table.insert(row, 1, redis.call('EXISTS', 'mesh:lease:' .. n))
    table.insert(row, 1, n)
    rows[#rows + 1] = row
  end
end
return rows
