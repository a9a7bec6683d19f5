#!lua flags=allow-oom,no-writes
-- Says whether a live replica of a class serves an operation.
-- KEYS: served
-- ARGV: number of databases, class, operation, 1 to count also a replica of the class that is expected back: it may serve
--       the operation
-- Returns 1 if so, else 0
local database_count, class, op, counts_expected = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4] == '1'
-- Returns whether the table of operations with this digest has the operation. KEYS[1] has each table by its digest.
local function table_has_op(digest)
  for other_op in string.gmatch(redis.call('HGET', KEYS[1], digest) or '', '%S+') do
    if other_op == op then return true end
  end
end

for n = 0, database_count - 1 do
  -- `pcall`: a row that somebody has overwritten with another type counts as missing.
  local row_class, state, digest = unpack(redis.pcall('HMGET', 'mesh:replica:' .. n, 'class', 'state', 'serves'))
  if row_class == class and state ~= 'left' and digest and table_has_op(digest) then return 1 end
  if counts_expected and not row_class and redis.call('GET', 'mesh:expected:' .. n) == class then return 1 end
end
return 0
