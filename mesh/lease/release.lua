#!lua flags=allow-oom
-- Releases a lease. The roster row stays, with the state "left", until it expires. Until then, requests to this class or
-- database wait for a successor. If other replicas stay, the mesh does not expect this one back.
-- The script also runs when memory is full (`allow-oom`), so that a replica can leave then. It frees memory.
-- KEYS: lease, roster row, request stream of the database, reply stream, submitted, committed, expected
-- ARGV: holder, 1 to release even if requests wait, bus database, database, number of databases
-- Returns 1 if the lease was released, 0 if it has ended or another replica holds it, -1 if requests wait
local lease_key, row_key, requests_key = KEYS[1], KEYS[2], KEYS[3]
local replies_key, submitted_key, committed_key, expected_key = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local bus, database, database_count = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call('GET', lease_key) ~= ARGV[1] then return 0 end
local entry_count = redis.pcall('XLEN', requests_key)
-- Nothing waits on a stream that somebody has overwritten.
if ARGV[2] ~= '1' and type(entry_count) == 'number' and entry_count > 0 then return -1 end
-- No later holder needs the reply stream, or the kept results of the last batches (submitted, committed).
redis.call('DEL', lease_key, replies_key, submitted_key, committed_key, expected_key)
redis.call('HSET', row_key, 'state', 'left')

-- Returns whether another replica stays. If all replicas leave together, all of them are expected back when the mesh starts
-- again. A row that somebody has overwritten (`pcall`) counts as missing.
local function is_outlived()
  for n = 0, database_count - 1 do
    local state = n ~= database and redis.pcall('HMGET', 'mesh:replica:' .. n, 'state')[1]
    if state == 'ready' or state == 'starting' then return true end
  end
end
if is_outlived() then
  -- While this key is there, grant.lua does not expect a holder of the database back.
  redis.call('SELECT', database)
  redis.call('SET', 'db' .. database .. ':left', '1')
  redis.call('SELECT', bus)
end
return 1
