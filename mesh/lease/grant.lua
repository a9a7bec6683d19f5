#!lua flags=allow-oom
-- Grants a database to a replica: writes the new epoch, the lease, the class and the roster row. The caller changes the
-- Redis user after this script, where possible in the same transaction.
-- The script also runs when memory is full (`allow-oom`), so that a replica can join then. It stores little.
-- KEYS: epoch, lease, roster row, reply stream, format of the bus, claim of the server (in database 0), expected
-- ARGV:
--   1 to 4    bus database, database, replica, lease ttl (ms)
--   5, 6      all classes as one word, class wanted or ""
--   7         random number for the choice of the class (0: take the class that the fewest replicas have)
--   8 to 10   number of databases, our claim, our format
--   11        how long after its lease a holder is expected back (ms)
--   from 12   field, value, ... of the roster row
-- Returns {epoch, class, now in ms}, or {} if another replica, another mesh or a newer release came first
local epoch_key, lease_key, row_key, replies_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local format_key, claim_key, expected_key = KEYS[5], KEYS[6], KEYS[7]
local bus, database, replica, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local classes, wanted_class, random_number, database_count = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local our_claim, our_format, missing_ms = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])

-- The text of written.lua takes the place of the next line. It defines MOST_NAMED, `note_keys` and `note_database`.
--[[ written.lua ]]

-- Each SELECT of another database is followed by one of the bus, where all keys in KEYS but the claim are. All checks come
-- before the first write, so a refused grant changes nothing.
if redis.call('EXISTS', lease_key) == 1 then return {} end
redis.call('SELECT', 0)
local found_claim = redis.call('GET', claim_key)
redis.call('SELECT', bus)
if found_claim and found_claim ~= our_claim then return {} end
if (tonumber(redis.call('GET', format_key) or 0) or 0) > our_format then return {} end
redis.call('SELECT', database)
local data_format = tonumber(redis.call('GET', 'db' .. database .. ':format') or 0) or 0
redis.call('SELECT', bus)
if data_format > our_format then return {} end
if not found_claim then
  redis.call('SELECT', 0)
  redis.call('SET', claim_key, our_claim)
  redis.call('SELECT', bus)
end
redis.call('SET', format_key, ARGV[10])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The epoch is at least the time in ms. So the same epoch is not granted again by a server that has lost its data, or whose
-- key of the epoch was overwritten with another text. A text of 16 or more characters is not the mesh's, and may be a number
-- that Lua cannot hold exactly.
local last_epoch = redis.call('GET', epoch_key) or ''
local epoch = math.max((#last_epoch < 16 and tonumber(string.match(last_epoch, '^%d+$')) or 0) + 1, now)

-- Returns the class that the fewest replicas have; of several, the first in `classes`.
local function rarest_class()
  local holder_count = {}  -- by class
  for n = 0, database_count - 1 do
    -- `pcall`: a row that somebody has overwritten counts as none.
    local class = redis.pcall('HMGET', 'mesh:replica:' .. n, 'class')[1]
    if class then holder_count[class] = (holder_count[class] or 0) + 1 end
  end
  local rarest
  for class in string.gmatch(classes, '.') do
    if not rarest or (holder_count[class] or 0) < (holder_count[rarest] or 0) then rarest = class end
  end
  return rarest
end

redis.call('SELECT', database)
redis.call('SET', 'db' .. database .. ':format', ARGV[10])
local class = redis.call('GET', 'db' .. database .. ':class')
redis.call('SELECT', bus)
if not class then
  if wanted_class ~= '' then
    class = wanted_class
  elseif random_number > 0 then
    local index = random_number % #classes + 1  -- Lua counts from 1
    class = string.sub(classes, index, index)
  else
    class = rarest_class()
  end
  redis.call('SELECT', database)
  redis.call('SET', 'db' .. database .. ':class', class)
  redis.call('SELECT', bus)
end

-- If no replica is live, this replica is the first one that comes back. Then the holders of all databases are expected back,
-- except those that had left while other replicas stayed.
local function expect_former_holders()
  for n = 0, database_count - 1 do
    if redis.call('EXISTS', 'mesh:replica:' .. n) == 1 then return end
  end
  for n = 0, database_count - 1 do
    redis.call('SELECT', n)
    local known_class, has_left = unpack(redis.call('MGET', 'db' .. n .. ':class', 'db' .. n .. ':left'))
    redis.call('SELECT', bus)
    if known_class and not has_left and missing_ms > 0 then
      redis.call('SET', 'mesh:expected:' .. n, known_class, 'PX', missing_ms)
    end
  end
end
expect_former_holders()

-- Notes anew which keys the database holds, as written.lua explains. An older release, or a person, may have written keys that
-- no note names. The bus database is left out, because it has too many other keys. The function also deletes the mark of
-- the former holder, which left while other replicas stayed: the database has a holder again.
local function note_all_keys()
  redis.call('SELECT', database)
  local own_prefix, written_set = 'db' .. database .. ':', 'db' .. database .. ':written'
  redis.call('DEL', own_prefix .. 'left')
  if database ~= bus then
    local next_cursor, found_keys = unpack(redis.call('SCAN', '0', 'COUNT', MOST_NAMED))
    local names, mesh_keys = {}, {[own_prefix .. 'class'] = true, [own_prefix .. 'format'] = true, [written_set] = true}
    for _, name in ipairs(found_keys) do
      if string.sub(name, 1, #own_prefix) == own_prefix and not mesh_keys[name] then names[name] = true end
    end
    redis.call('DEL', written_set)
    -- If SCAN has not read all keys, the others are noted as keys that never end.
    local last_end = note_keys(written_set, names, next_cursor ~= '0' and math.huge or nil, now)
    redis.call('SELECT', bus)
    note_database(database, last_end)
  end
  redis.call('SELECT', bus)
end
note_all_keys()

local epoch_text = string.format('%.0f', epoch)
redis.call('SET', epoch_key, epoch_text)
redis.call('SET', lease_key, epoch_text .. ' ' .. replica, 'PX', ttl)
-- The row of the former holder may have other fields. Those of the new row begin at ARGV[12].
redis.call('DEL', row_key)
redis.call('HSET', row_key, 'class', class, 'replica', replica, 'epoch', epoch_text, 'state', 'starting',
  'since', string.format('%.0f', now), unpack(ARGV, 12))
-- The row ends a third of the ttl after the lease. In that time a successor may take the database, so a gather waits for the
-- successor instead of leaving the database out.
redis.call('PEXPIRE', row_key, math.floor(ttl * 4 / 3))
redis.call('SET', expected_key, class, 'PX', ttl + missing_ms)
-- The reply stream is created before the first request, because no reply creates it (NOMKSTREAM). So a reply to a replica
-- that has ended does not create its stream again. The stream ends ten ttls after the last renewal. It must outlive
-- the lease; with a larger number, replies that nobody reads take memory for longer.
redis.call('XDEL', replies_key, redis.call('XADD', replies_key, '*', 'op', 'open'))
redis.call('PEXPIRE', replies_key, 10 * ttl)
return {epoch_text, class, string.format('%.0f', now)}
