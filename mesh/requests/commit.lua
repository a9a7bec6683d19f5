#!lua flags=allow-oom
-- Makes transactions true. Of each: effect, sends, reply, acknowledgement and books, all or nothing.
-- KEYS: lease, books, committed
-- ARGV: holder, how long to remember the batch (ms), database, bus, consumer, number of the batch, then each transaction:
--   words in it with this one
--   stream, id            the request; empty: a transaction of the replica's own
--   reply stream, key, op, status, forwards, body    the reply; no stream: nobody waits
--   number of groups of expectations, of writes, of sends, and then these:
--   expectations  1 own | 0 shared, hash or "", number of names, of values: as many, or 0 where all are to be absent;
--                 the names (fields or keys), the values
--   write         1 own | 0 shared, and the types that the first keys must be of, where it matters ("1 hash zset");
--                 words of the command, verb, key, ...; verbs beside Redis's own:
--                 set-all, ms, value, key, ...            SET each of these keys until then
--                 zadd-all, key, score, member, ...       ZADD each of these members with that score
--                 pair-all, hash, zset, name, text, ...   a name's first text as a field of the hash, others as members
--                                                         "name:text" of the zset
--                 unpair-all, hash, zset, name, text, ... no such pair any more, in either
--                 keep, key, ms                           let it live at least until then, when all is written
--   send          to, op, key, reply stream, deadline, body, from
-- Returns one word per transaction, as a JSON list: done, not-mine, conflict, or what is wrong with its writes
-- Allowed when memory is full: it finishes what was accepted, and finishing frees memory.
local lease_key, books_key, committed_key = KEYS[1], KEYS[2], KEYS[3]
local holder, remembered_ms, database, bus = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local consumer, batch = ARGV[5], ARGV[6] .. ' '
local held, before = unpack(redis.call('MGET', lease_key, committed_key))
-- Gone is not yet lost: of an emptied server, the next renewal puts the lease back, or says that it is over.
if not held then return redis.error_reply('LEASEGONE there is no lease just now') end
if held ~= holder then return redis.error_reply('LEASELOST the lease is over') end
-- The same batch again: its answer was lost on the way, not its effect.
if before and string.sub(before, 1, #batch) == batch then return string.sub(before, #batch + 1) end

-- Going from one database to another costs as much as a command, so what belongs to the bus is done for all transactions
-- together: whose their requests are before the first of them, replies and acknowledgements after the last.
local at = bus
local function go_to(number)
  if at ~= number then
    redis.call('SELECT', number)
    at = number
  end
end

local function go(side) go_to(string.byte(side) == 49 and database or bus) end

local transactions, first_of, last_of, number_of, begin = {}, {}, {}, {}, 7
while begin <= #ARGV do
  local stream = ARGV[begin + 1]
  transactions[#transactions + 1] = begin
  if stream ~= '' then
    first_of[stream] = first_of[stream] or ARGV[begin + 2]
    last_of[stream] = ARGV[begin + 2]
    number_of[stream] = (number_of[stream] or 0) + 1
  end
  begin = begin + tonumber(ARGV[begin])
end

-- Which requests are mine, by stream and id; false: no longer. Those of a stream end about in the order in which they
-- came, so they are asked for together, from the first to the last of them here; one that lies outside is, by itself.
local mine = {}
local function ask(stream, first, last, most)
  go_to(bus)
  local pending = redis.pcall('XPENDING', stream, 'workers', first, last, most, consumer)
  for i = 1, #pending do mine[stream][pending[i][1]] = true end
end

for stream, number in pairs(number_of) do
  mine[stream] = {}
  ask(stream, first_of[stream], last_of[stream], 2 * number)
end

local function is_mine(stream, id)
  if mine[stream][id] == nil then ask(stream, id, id, 1) end
  return mine[stream][id]
end

local function wrong_type(key, wanted)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then return key .. ' holds a ' .. found .. ', not a ' .. wanted end
end

-- Where the groups of expectations end; nothing, and why, if one of them does not hold.
local function unchanged(first, groups)
  local i = first
  for _ = 1, groups do
    local hash, names, values, found = ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), nil
    local last = i + 3 + names
    go(ARGV[i])
    if hash == '' then
      found = redis.call('MGET', unpack(ARGV, i + 4, last))
    else
      local wrong = wrong_type(hash, 'hash')
      if wrong then return nil, wrong end
      found = redis.call('HMGET', hash, unpack(ARGV, i + 4, last))
    end
    for k = 1, names do
      local wanted = values > 0 and ARGV[last + k]
      if found[k] ~= wanted then return nil, 'conflict' end
    end
    i = last + values + 1
  end
  return i
end

-- A script cannot be rolled back, so what could fail half-way is found out first.
local function wrong_write(first, count)
  local i = first
  for _ = 1, count do
    local how, k = ARGV[i], i + 2
    if #how > 1 then
      go(how)
      for wanted in string.gmatch(how, '%a+') do
        k = k + 1
        local wrong = wrong_type(ARGV[k], wanted)
        if wrong then return wrong end
      end
    end
    i = i + 2 + tonumber(ARGV[i + 1])
  end
end

-- By database and key: the latest of what the whole batch says of it, since many of its requests speak of the same keys.
local kept = {}
local function keep(first)
  local key, ms = ARGV[first + 1], ARGV[first + 2]
  kept[at] = kept[at] or {}
  local before = kept[at][key]
  if not before or tonumber(before) < tonumber(ms) then kept[at][key] = ms end
end

-- Verbs beside Redis's own are written in small letters. They are made where one is asked for: to make a function costs
-- about as much as a command does, and most transactions need none of these.
local function make_verbs()
  -- Lua can hand over some 8000 words at once.
  local HANDED_OVER = 2000

  local function set_each(first, last, value, ms)
    for k = first, last do
      local result = redis.pcall('SET', ARGV[k], value, 'PXAT', ms)
      if result.err then return result end
    end
  end

  -- In one command, where the server has it: Valkey from 9.1, Redis from 8.4.
  local has_msetex = true
  local function set_together(first, last, value, ms)
    local words, n = {}, 0
    for k = first, last do
      words[n + 1], words[n + 2] = ARGV[k], value
      n = n + 2
    end
    words[n + 1], words[n + 2] = 'PXAT', ms
    local result = redis.pcall('MSETEX', last - first + 1, unpack(words))
    has_msetex = type(result) ~= 'table'
  end

  local function set_all(first, last)
    local ms, value = ARGV[first + 1], ARGV[first + 2]
    for begin = first + 3, last, HANDED_OVER do
      local till = math.min(begin + HANDED_OVER - 1, last)
      if has_msetex then set_together(begin, till, value, ms) end
      if not has_msetex then
        local failed = set_each(begin, till, value, ms)
        if failed then return failed end
      end
    end
  end

  local function zadd_all(first, last)
    local score = ARGV[first + 2]
    for begin = first + 3, last, HANDED_OVER do
      local words, n = {}, 0
      for k = begin, math.min(begin + HANDED_OVER - 1, last) do
        words[n + 1], words[n + 2] = score, ARGV[k]
        n = n + 2
      end
      local result = redis.pcall('ZADD', ARGV[first + 1], unpack(words))
      if type(result) == 'table' then return result end
    end
  end

  -- What the hash has under the names of some pairs, and the names.
  local function texts_of(hash, first, last)
    local names = {}
    for k = first, last, 2 do names[#names + 1] = ARGV[k] end
    return redis.call('HMGET', hash, unpack(names)), names
  end

  -- A field costs a third of what a member does, and of most names there is one text only.
  local function pair_all(first, last)
    local hash, zset = ARGV[first + 1], ARGV[first + 2]
    for begin = first + 3, last, HANDED_OVER do
      local before, names = texts_of(hash, begin, math.min(begin + HANDED_OVER - 1, last))
      local now, fields, n, members, m = {}, {}, 0, {}, 0
      for i, name in ipairs(names) do
        local text, other = ARGV[begin + 2 * i - 1], before[i] or now[name]
        if not other then
          now[name] = text
          fields[n + 1], fields[n + 2] = name, text
          n = n + 2
        elseif other ~= text then
          members[m + 1], members[m + 2] = '0', name .. ':' .. text
          m = m + 2
        end
      end
      if n > 0 then redis.call('HSET', hash, unpack(fields)) end
      if m > 0 then redis.call('ZADD', zset, unpack(members)) end
    end
  end

  local function unpair_all(first, last)
    local hash, zset = ARGV[first + 1], ARGV[first + 2]
    for begin = first + 3, last, HANDED_OVER do
      local before, names = texts_of(hash, begin, math.min(begin + HANDED_OVER - 1, last))
      local fields, members = {}, {}
      for i, name in ipairs(names) do
        local text = ARGV[begin + 2 * i - 1]
        if before[i] == text then fields[#fields + 1] = name end
        members[i] = name .. ':' .. text
      end
      if #fields > 0 then redis.call('HDEL', hash, unpack(fields)) end
      redis.call('ZREM', zset, unpack(members))
    end
  end

  return {['set-all'] = set_all, ['zadd-all'] = zadd_all, ['pair-all'] = pair_all, ['unpair-all'] = unpair_all, keep = keep}
end

local verbs
local function run(first, last)
  if string.byte(ARGV[first]) < 97 then return redis.pcall(unpack(ARGV, first, last)) end
  verbs = verbs or make_verbs()
  return verbs[ARGV[first]](first, last)
end

-- What fails all the same (its handler's mistake: words a verb does not take) ends its own transaction, which is not
-- acknowledged, and none of its neighbours.
local function write(first, count)
  local i = first
  for _ = 1, count do
    go(ARGV[i])
    local last = i + 1 + tonumber(ARGV[i + 1])
    local result = run(i + 2, last)
    if type(result) == 'table' and result.err then
      return i, ARGV[i + 2] .. ' ' .. ARGV[i + 3] .. ': ' .. tostring(result.err)
    end
    i = last + 1
  end
  return i
end

local SEND = 7
local function send(first, count)
  if count == 0 then return end
  go('0')
  for i = first, first + (count - 1) * SEND, SEND do
    redis.call('XADD', 'mesh:requests:' .. ARGV[i], '*', 'op', ARGV[i + 1], 'request', ARGV[i + 2], 'from', ARGV[i + 6],
      'reply_to', ARGV[i + 3], 'deadline', ARGV[i + 4], 'body', ARGV[i + 5])
  end
  redis.call('HINCRBY', books_key, 'accepted', count)
end

-- Nothing, or why not.
local function commit(t)
  local stream, id = ARGV[t + 1], ARGV[t + 2]
  local expects, writes, sends = tonumber(ARGV[t + 9]), tonumber(ARGV[t + 10]), tonumber(ARGV[t + 11])
  if stream ~= '' and not is_mine(stream, id) then return 'not-mine' end
  local first_write, otherwise = unchanged(t + 12, expects)
  if not first_write then return otherwise end
  local wrong = wrong_write(first_write, writes)
  if wrong then return wrong end
  local first_send, failed = write(first_write, writes)
  if failed then return failed end
  send(first_send, sends)
  if stream ~= '' then mine[stream][id] = false end
end

local function reply(t)
  local stream, key, op, status, forwards, body = unpack(ARGV, t + 3, t + 8)
  if stream ~= '' then
    redis.call('XADD', stream, 'NOMKSTREAM', '*', 'request', key, 'op', op, 'from', consumer, 'status', status,
      'forwards', forwards, 'body', body)
  end
end

local outcomes, ids_of, answered = {}, {}, 0
local function settle(t)
  reply(t)
  local stream = ARGV[t + 1]
  if stream ~= '' then
    local ids = ids_of[stream] or {}
    ids[#ids + 1], ids_of[stream], answered = ARGV[t + 2], ids, answered + 1
  end
end

for i, t in ipairs(transactions) do outcomes[i] = commit(t) or 'done' end
for number, lifetimes in pairs(kept) do
  go_to(number)
  for key, ms in pairs(lifetimes) do
    redis.call('PEXPIREAT', key, ms, 'NX')
    redis.call('PEXPIREAT', key, ms, 'GT')
  end
end
go_to(bus)
for i, t in ipairs(transactions) do
  if outcomes[i] == 'done' then settle(t) end
end
for stream, ids in pairs(ids_of) do
  redis.call('XACK', stream, 'workers', unpack(ids))
  redis.call('XDEL', stream, unpack(ids))
end
if answered > 0 then redis.call('HINCRBY', books_key, 'answered', answered) end
local result = cjson.encode(outcomes)
redis.call('SET', committed_key, batch .. result, 'PX', remembered_ms)
return result
