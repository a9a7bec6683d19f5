#!lua flags=allow-oom
-- Gives a lease back. The roster row stays as "left" until it expires; requests to this class or database wait that
-- long for a successor. A mesh that goes on without this replica does not expect it back.
-- KEYS: lease, roster row, request stream of the database, reply stream, submitted, committed, expected
-- ARGV: holder, 1 to release even if requests wait, bus, database, databases
-- Returns 1 released, 0 another replica holds it or it has ended, -1 requests wait
local lease_key, row_key, requests_key = KEYS[1], KEYS[2], KEYS[3]
local replies_key, submitted_key, committed_key, expected_key = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local bus, database, databases = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if redis.call('GET', lease_key) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '1' and redis.call('XLEN', requests_key) > 0 then return -1 end
redis.call('DEL', lease_key, replies_key, submitted_key, committed_key, expected_key)
redis.call('HSET', row_key, 'state', 'left')

-- Whether another replica stays. When all of them leave together, the mesh ends, and expects all of them back.
local function is_outlived()
  for n = 0, databases - 1 do
    local state = n ~= database and redis.call('HGET', 'mesh:replica:' .. n, 'state')
    if state == 'ready' or state == 'starting' then return true end
  end
end
if is_outlived() then
  redis.call('SELECT', database)
  redis.call('SET', 'db' .. database .. ':left', '1')
  redis.call('SELECT', bus)
end
return 1
