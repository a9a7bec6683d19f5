#!lua flags=allow-oom,no-writes
-- Reads which operations the live replicas serve, and which release among them is the oldest.
-- ARGV: number of databases
-- Returns {1 if the operations of every replica are known or else 0, highest level that the oldest release reads, and of
--       this release: replica, database and version; then each operation}
-- The keys are not in KEYS, because the server refuses the whole script to a user that may not read one of its KEYS. The
-- Redis user of an older client may not read `mesh:operations:served`. For such a client no operations are known.
-- `all_are_known` and `ops` are what the script returns: 1 or 0, and the operations found so far. `is_listed` is true for each
-- of these operations, so that none is listed twice. `oldest` has the level, replica, database and version of the live replica
-- with the lowest level so far.
local all_are_known, oldest, is_listed, ops = 1, {math.huge, '', '', ''}, {}, {}
local digests_and_tables = redis.pcall('HGETALL', 'mesh:operations:served')
if digests_and_tables.err then digests_and_tables = {} end
local table_of_digest = {}
for i = 1, #digests_and_tables, 2 do table_of_digest[digests_and_tables[i]] = digests_and_tables[i + 1] end

local any_is_live = false
for n = 0, tonumber(ARGV[1]) - 1 do
  -- `pcall`: a row that somebody has overwritten with another type counts as missing.
  local row = redis.pcall('HMGET', 'mesh:replica:' .. n, 'replica', 'state', 'serves', 'reads', 'version')
  if not row[1] then
    -- The replica of this database is expected back, and may serve anything.
    if redis.call('EXISTS', 'mesh:expected:' .. n) == 1 then all_are_known = 0 end
  elseif row[2] ~= 'left' then
    any_is_live = true
    local level = tonumber(row[4] or '0') or 0
    if level < oldest[1] then oldest = {level, row[1], tostring(n), row[5] or ''} end
    local ops_text = row[3] and table_of_digest[row[3]]
    if not ops_text then all_are_known = 0 end
    for op in string.gmatch(ops_text or '', '%S+') do
      if not is_listed[op] then
        is_listed[op] = true
        ops[#ops + 1] = op
      end
    end
  end
end
-- Lua's `unpack` fails at about 8000 values. Operations beyond 4000 are left out, and the answer says that some are unknown.
if #ops > 4000 then all_are_known = 0 end
-- If no replica is live, no release is too old for any level: 2 ^ 31 is above all levels.
if not any_is_live then all_are_known, oldest[1] = 0, 2 ^ 31 end
return {all_are_known, oldest[1], oldest[2], oldest[3], oldest[4], unpack(ops, 1, 4000)}
