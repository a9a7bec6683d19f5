#!lua flags=allow-oom
-- Grants a database to a replica: writes the new epoch, the lease, the class and the roster row. The caller changes the
-- Redis user after this script, where possible in the same transaction.
-- KEYS: epoch, lease, roster row, reply stream, format of the bus, claim of the server (in database 0), expected
-- ARGV: bus database, database, replica, lease ttl (ms), all classes as one word, class wanted or "", random number for the
--       choice of the class (0: take the class that the fewest replicas have), number of databases, our claim, our format,
--       how long after its lease a holder is expected back (ms), then field, value, ... of the roster row
-- Returns {epoch, class, now in ms}, or {} if another replica, another mesh or a newer release came first
local epoch_key, lease_key, row_key, replies_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local format_key, claim_key, expected_key = KEYS[5], KEYS[6], KEYS[7]
local bus, database, replica, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local classes, wanted, random, databases = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local claim, format, missing_ms = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])

--[[ written.lua ]]

if redis.call('EXISTS', lease_key) == 1 then return {} end
redis.call('SELECT', 0)
local claimed = redis.call('GET', claim_key)
redis.call('SELECT', bus)
if claimed and claimed ~= claim then return {} end
if (tonumber(redis.call('GET', format_key) or 0) or 0) > format then return {} end
redis.call('SELECT', database)
local known = tonumber(redis.call('GET', 'db' .. database .. ':format') or 0) or 0
redis.call('SELECT', bus)
if known > format then return {} end
if not claimed then
  redis.call('SELECT', 0)
  redis.call('SET', claim_key, claim)
  redis.call('SELECT', bus)
end
redis.call('SET', format_key, ARGV[10])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The epoch is at least the time in ms. So the same epoch is not granted again by a server that has lost its data, or whose
-- key of the epoch was overwritten with another text.
local epoch = math.max((tonumber(redis.call('GET', epoch_key) or 0) or 0) + 1, now)

local function rarest()
  local held = {}
  for n = 0, databases - 1 do
    local class = redis.pcall('HMGET', 'mesh:replica:' .. n, 'class')[1]
    if class then held[class] = (held[class] or 0) + 1 end
  end
  local best
  for class in string.gmatch(classes, '.') do
    if not best or (held[class] or 0) < (held[best] or 0) then best = class end
  end
  return best
end

redis.call('SELECT', database)
redis.call('SET', 'db' .. database .. ':format', ARGV[10])
local class = redis.call('GET', 'db' .. database .. ':class')
redis.call('SELECT', bus)
if not class then
  if wanted ~= '' then
    class = wanted
  elseif random > 0 then
    local at = random % #classes + 1
    class = string.sub(classes, at, at)
  else
    class = rarest()
  end
  redis.call('SELECT', database)
  redis.call('SET', 'db' .. database .. ':class', class)
  redis.call('SELECT', bus)
end

-- If no replica is live, this replica is the first one that comes back. Then the holders of all databases are expected back,
-- except those that had left while other replicas stayed.
local function expect_all()
  for n = 0, databases - 1 do
    if redis.call('EXISTS', 'mesh:replica:' .. n) == 1 then return end
  end
  for n = 0, databases - 1 do
    redis.call('SELECT', n)
    local its_class, left = unpack(redis.call('MGET', 'db' .. n .. ':class', 'db' .. n .. ':left'))
    redis.call('SELECT', bus)
    if its_class and not left and missing_ms > 0 then redis.call('SET', 'mesh:expected:' .. n, its_class, 'PX', missing_ms) end
  end
end
expect_all()

-- Notes anew which keys the database holds, as written.lua explains. An older release, or a person, may have written keys that
-- no note names. The bus database is left out, because it has too many other keys. Also deletes the mark that the former
-- holder left while other replicas stayed: it now has a holder.
local function count()
  redis.call('SELECT', database)
  local own, set = 'db' .. database .. ':', 'db' .. database .. ':written'
  redis.call('DEL', own .. 'left')
  if database ~= bus then
    local rest, found = unpack(redis.call('SCAN', '0', 'COUNT', MOST_NAMED))
    local names, mine = {}, {[own .. 'class'] = true, [own .. 'format'] = true, [set] = true}
    for _, name in ipairs(found) do
      if string.sub(name, 1, #own) == own and not mine[name] then names[name] = true end
    end
    redis.call('DEL', set)
    -- If SCAN has not read all keys, the others may never end.
    local last = note_keys(set, names, rest ~= '0' and math.huge or nil, now)
    redis.call('SELECT', bus)
    note_database(database, last)
  end
  redis.call('SELECT', bus)
end
count()

local text = string.format('%.0f', epoch)
redis.call('SET', epoch_key, text)
redis.call('SET', lease_key, text .. ' ' .. replica, 'PX', ttl)
-- The row of the former holder may have other fields.
redis.call('DEL', row_key)
redis.call('HSET', row_key, 'class', class, 'replica', replica, 'epoch', text, 'state', 'starting',
  'since', string.format('%.0f', now), unpack(ARGV, 12))
-- The row ends a third of the ttl after the lease. In that time a successor may take the database, so a gather waits for the
-- successor instead of leaving the database out.
redis.call('PEXPIRE', row_key, math.floor(ttl * 4 / 3))
redis.call('SET', expected_key, class, 'PX', ttl + missing_ms)
-- The reply stream is created before the first request, because no reply creates it (NOMKSTREAM). So a reply to a replica
-- that is gone does not create its stream again.
redis.call('XDEL', replies_key, redis.call('XADD', replies_key, '*', 'op', 'open'))
redis.call('PEXPIRE', replies_key, 10 * ttl)
return {text, class, string.format('%.0f', now)}
