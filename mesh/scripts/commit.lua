#!lua flags=allow-oom
-- Makes transactions true. Of each: effect, sends, reply, acknowledgement and books, all or nothing.
-- KEYS: lease, books, submitted
-- ARGV: holder, database, bus, consumer, batch number, JSON list of transactions:
--   entry   {stream, id} or nothing (a transaction of the replica's own)
--   expect  list of {1 own | 0 shared, key, field or "", value or false}
--   writes  list of {1 own | 0 shared, verb, key, ...}
--   sends   list of {to, op, key, reply_to, deadline, body, from}
--   reply   {stream, key, op, status, forwards, body} or nothing
-- Returns one word per transaction: done, not-mine, conflict, or what is wrong with its writes; or lease-lost for all
-- Allowed when memory is full: it finishes what was accepted, and finishing frees memory.
local lease_key, books_key, submitted_key = KEYS[1], KEYS[2], KEYS[3]
local holder, database, bus, consumer, batch = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local transactions = cjson.decode(ARGV[6])
if redis.call('GET', lease_key) ~= holder then return {'lease-lost'} end
-- The same batch again: its answer was lost on the way, not its effect.
local before = redis.call('HMGET', submitted_key, 'commit', 'outcomes')
if before[1] == batch then return cjson.decode(before[2]) end

local at = bus
local function go(own)
  local to = own == 1 and database or bus
  if at ~= to then
    redis.call('SELECT', to)
    at = to
  end
end

local function is_mine(entry)
  local pending = redis.pcall('XPENDING', entry[1], 'workers', entry[2], entry[2], 1, consumer)
  return not pending.err and #pending > 0
end

local function unchanged(expect)
  for _, e in ipairs(expect) do
    go(e[1])
    local value
    if e[3] == '' then value = redis.call('GET', e[2]) else value = redis.call('HGET', e[2], e[3]) end
    if value ~= e[4] then return false end
  end
  return true
end

-- A script cannot be rolled back, so what could fail half-way is found out first.
local TYPES = {SET = '', DEL = '', UNLINK = '', PEXPIREAT = '', PERSIST = '', INCRBY = 'string', HSET = 'hash', HDEL = 'hash',
  HINCRBY = 'hash', ZADD = 'zset', ZREM = 'zset', SADD = 'set', SREM = 'set', RPUSH = 'list', LPUSH = 'list',
  LTRIM = 'list', XADD = 'stream'}
local function wrong_write(writes)
  for _, w in ipairs(writes) do
    local wanted = TYPES[w[2]]
    if not wanted then return w[2] .. ' is not a verb of transactions' end
    if wanted ~= '' then
      go(w[1])
      local found = redis.call('TYPE', w[3]).ok
      if found ~= 'none' and found ~= wanted then return w[3] .. ' holds a ' .. found .. ', not a ' .. wanted end
    end
  end
end

local function apply(t)
  for _, w in ipairs(t.writes) do
    go(w[1])
    redis.call(unpack(w, 2))
  end
  go(0)
  for _, s in ipairs(t.sends) do
    redis.call('XADD', 'mesh:requests:' .. s[1], '*', 'op', s[2], 'request', s[3], 'from', s[7], 'reply_to', s[4],
      'deadline', s[5], 'body', s[6])
  end
  if #t.sends > 0 then redis.call('HINCRBY', books_key, 'accepted', #t.sends) end
  local r = t.reply
  if r then
    redis.call('XADD', r[1], 'NOMKSTREAM', '*', 'request', r[2], 'op', r[3], 'from', consumer, 'status', r[4],
      'forwards', r[5], 'body', r[6])
  end
  if t.entry then
    redis.call('XACK', t.entry[1], 'workers', t.entry[2])
    redis.call('XDEL', t.entry[1], t.entry[2])
    redis.call('HINCRBY', books_key, 'answered', 1)
  end
end

local outcomes = {}
for i, t in ipairs(transactions) do
  go(0)
  if t.entry and not is_mine(t.entry) then
    outcomes[i] = 'not-mine'
  elseif not unchanged(t.expect) then
    outcomes[i] = 'conflict'
  else
    local wrong = wrong_write(t.writes)
    if not wrong then apply(t) end
    outcomes[i] = wrong or 'done'
  end
end
go(0)
redis.call('HSET', submitted_key, 'commit', batch, 'outcomes', cjson.encode(outcomes))
return outcomes
