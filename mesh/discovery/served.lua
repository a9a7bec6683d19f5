#!lua flags=allow-oom,no-writes
-- Reads which operations the live replicas serve, and which release among them is the oldest.
-- ARGV: number of databases
-- Returns {1 if the operations of every replica are known or else 0, highest level that the oldest release reads, and of
--       this release: replica, database and version; then each operation}
-- The keys are not in KEYS, because the server refuses the whole script to a user that may not read one of its KEYS. The
-- Redis user of an older client may not read `mesh:operations:served`. For such a client no operations are known.
local known, oldest, seen, names = 1, {math.huge, '', '', ''}, {}, {}
local tables = redis.pcall('HGETALL', 'mesh:operations:served')
if tables.err then tables = {} end
local served = {}
for i = 1, #tables, 2 do served[tables[i]] = tables[i + 1] end

local found = false
for n = 0, tonumber(ARGV[1]) - 1 do
  local row = redis.pcall('HMGET', 'mesh:replica:' .. n, 'replica', 'state', 'serves', 'reads', 'version')
  if not row[1] then
    -- The replica of this database is expected back, and may serve anything.
    if redis.call('EXISTS', 'mesh:expected:' .. n) == 1 then known = 0 end
  elseif row[2] ~= 'left' then
    found = true
    local reads = tonumber(row[4] or '0') or 0
    if reads < oldest[1] then oldest = {reads, row[1], tostring(n), row[5] or ''} end
    local text = row[3] and served[row[3]]
    if not text then known = 0 end
    for name in string.gmatch(text or '', '%S+') do
      if not seen[name] then
        seen[name] = true
        names[#names + 1] = name
      end
    end
  end
end
-- Lua's `unpack` cannot return many more.
if #names > 4000 then known = 0 end
-- If no replica is live, no release is too old for any level.
if not found then known, oldest[1] = 0, 2 ^ 31 end
return {known, oldest[1], oldest[2], oldest[3], oldest[4], unpack(names, 1, 4000)}
