#!lua flags=allow-oom
-- Writes which operations a replica serves. Removes the operations that no live replica serves any more, and lets their
-- schedules rest: no replica wakes for them. The script also runs when memory is full (`allow-oom`), so that a replica can
-- join then, too. It stores little: the names and the definitions of operations.
-- KEYS: operations, served, schedules
-- ARGV:
--   1, 2     number of databases, digest of the replica's table of operations
--   3        1 to overwrite definitions, 0 to write only missing ones
--   from 4   operation, definition, ... of the replica. `Publication.restore` first leaves them out: then the script writes
--            nothing of the replica's own, and only removes. If it returns 0, `restore` runs it again with the definitions.
-- Returns 1 if the table of this digest and the definition of each of its operations are in Redis, else 0
local operations_key, served_key, schedules_key = KEYS[1], KEYS[2], KEYS[3]
local database_count, digest, overwrite = tonumber(ARGV[1]), ARGV[2], ARGV[3] == '1'

-- The replicas write all that these keys have, so a key that somebody has overwritten is deleted and written anew.
for key, wanted_type in pairs({[operations_key] = 'hash', [served_key] = 'hash', [schedules_key] = 'zset'}) do
  if redis.call('TYPE', key).ok ~= wanted_type then redis.call('DEL', key) end
end

-- Calls `visit` with each operation of a table. The text of a table has the names with spaces between them.
local function each_op(text, visit)
  for op in string.gmatch(text, '%S+') do visit(op) end
end

-- From ARGV[4] on, each operation is followed by its definition.
local own_ops = {}
for i = 4, #ARGV, 2 do
  own_ops[#own_ops + 1] = ARGV[i]
  if overwrite then
    redis.call('HSET', operations_key, ARGV[i], ARGV[i + 1])
  else
    redis.call('HSETNX', operations_key, ARGV[i], ARGV[i + 1])
  end
end
if #own_ops > 0 or overwrite then redis.call('HSET', served_key, digest, table.concat(own_ops, ' ')) end

-- `live_digests` names the tables of live replicas, and `live_ops` has the operations in these tables. No live replica has one
-- of the `unused_tables`.
local live_digests, live_ops, unused_tables, all_are_known = {[digest] = true}, {}, {}, true
local has_unreadable_row = false
for n = 0, database_count - 1 do
  -- If somebody has overwritten a row with another type, nobody knows what its replica serves, until the replica's next
  -- renewal writes the row anew. Until then all tables count as those of live replicas.
  local row = redis.pcall('HMGET', 'mesh:replica:' .. n, 'replica', 'serves')
  if row.err then all_are_known, has_unreadable_row = false, true end
  local replica, row_digest = row[1], row[2]
  if row_digest then live_digests[row_digest] = true end
  -- A replica of an older release does not say what it serves. A replica that has just joined has not said it yet.
  if replica and (not row_digest or redis.call('HEXISTS', served_key, row_digest) == 0) then all_are_known = false end
end
local digests_and_tables = redis.call('HGETALL', served_key)
for i = 1, #digests_and_tables, 2 do
  if has_unreadable_row or live_digests[digests_and_tables[i]] then
    each_op(digests_and_tables[i + 1], function(op) live_ops[op] = true end)
  else
    redis.call('HDEL', served_key, digests_and_tables[i])
    unused_tables[#unused_tables + 1] = digests_and_tables[i + 1]
  end
end
-- No live replica has one of these tables. Its replicas were perhaps of another release, and have written other definitions.
-- So the script deletes the definitions of all operations in the table, also of those that live replicas serve. With their
-- next sweep, these replicas write their own definitions.
for _, ops_text in ipairs(unused_tables) do
  each_op(ops_text, function(op) redis.call('HDEL', operations_key, op) end)
end
for _, op in ipairs(redis.call('HKEYS', operations_key)) do
  if not live_ops[op] then redis.call('HDEL', operations_key, op) end
end

-- A schedule that no live replica runs leaves the list of next ticks, so that no replica wakes for it. Replicas that run it
-- may come back, and then its missed ticks count. So the schedule itself is kept for a year; schedule.lua removes this expiry
-- when a replica runs the schedule again. All tables must be known, because a schedule that rests by mistake sends no ticks
-- until its replica lists it again.
local YEAR_MS = 366 * 24 * 60 * 60 * 1000
if all_are_known then
  for _, op in ipairs(redis.call('ZRANGE', schedules_key, 0, -1)) do
    if not live_ops[op] then
      redis.call('ZREM', schedules_key, op)
      redis.call('PEXPIRE', 'mesh:schedule:' .. op, string.format('%.0f', YEAR_MS))
    end
  end
end

local own_table = redis.call('HGET', served_key, digest)
if not own_table then return 0 end
local is_complete = 1
each_op(own_table, function(op)
  if redis.call('HEXISTS', operations_key, op) == 0 then is_complete = 0 end
end)
return is_complete
