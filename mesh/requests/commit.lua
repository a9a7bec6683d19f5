#!lua
-- Applies transactions: of each, its sends, writes, reply, acknowledgement and books. A script cannot be rolled back,
-- so everything that can make a transaction fail is checked before its first write, and one that would fail changes
-- nothing. There are two of this script. The server refuses this one when memory is full. Then the other one, with
-- `allow-oom`, applies the transactions that store nothing. They finish what was accepted, and that frees memory. This
-- one does the same for a batch that would exceed the memory.
-- KEYS: lease, books, committed
-- ARGV: holder, how long to remember the batch (ms), database, bus, consumer, number of the batch, and the transactions, as
--       batch.lua reads them, because JSON costs less than each word as an argument. The words of a transaction:
--   stream, id            the request; empty: a transaction of the replica's own
--   reply stream, key, op, status, forwards, body    the reply; no stream: no caller waits
--   number of groups of expectations, of writes, of sends, microseconds of work, the call or "", and then these:
--   expectations  1 own | 0 shared, hash or "", number of names, number of values (as many, or 0: all must be absent),
--                 the names (fields or keys), the values;
--                 or 1r | 0r and the answer of a reading command, as commit_answers.lua compares it
--   write         2 own, only read | 1 own | 0 shared and, for each leading key, what to check before any write: a type,
--                 "integer" (a string that the command can increase), "field" (the same for a hash's field), "bounded"
--                 (there is room in the sorted set of waiting requests), "placed" (the options of `place` allow it), or
--                 "any"; number of words of the command, verb, key, ... A verb in small letters is one of
--                 commit_verbs.lua.
--   send          to, op, key, reply stream, deadline, body, from, and its further fields as submit.lua says
-- Returns one word per transaction, as a JSON list: done, not-mine, full, "too-many <key>", "limited <ms> <lane>",
-- "key-reused <idempotency key>", "conflict <side> <hash> <name>", or why the writes are not possible
local lease_key, books_key, committed_key = KEYS[1], KEYS[2], KEYS[3]
local holder, remembered_ms, database, bus = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local consumer, batch = ARGV[5], ARGV[6] .. ' '
local memory_is_full = false
local held, before = unpack(redis.call('MGET', lease_key, committed_key))
-- A missing lease is not yet a lost one: after the server was emptied, the next renewal decides.
if not held then return redis.error_reply('LEASEGONE there is no lease at the moment') end
if held ~= holder then return redis.error_reply('LEASELOST another replica holds the lease') end
-- The same batch again: it has been applied, and only its answer was lost.
if before and string.sub(before, 1, #batch) == batch then return string.sub(before, #batch + 1) end

-- SELECT costs as much as any command, so the bus database is used for all transactions together: their requests are
-- looked up before the first transaction, and replies and acknowledgements are written after the last one.
local at = bus
local function go_to(number)
  if at ~= number then
    redis.call('SELECT', number)
    at = number
  end
end

-- What the first word of expectations and of a write says, read once for each such word of the batch: the database, whether
-- its own keys are written, and what to check.
local says = setmetatable({}, {__index = function(known, word)
  local side, wanted = string.sub(word, 1, 1), {}
  for each in string.gmatch(word, '%a+') do wanted[#wanted + 1] = each end
  known[word] = {number = side == '0' and bus or database, writes_own = side == '1', wanted = wanted}
  return known[word]
end})

--[[ batch.lua ]]

-- The words of all transactions, and where each begins. The one at hand begins at `head`; its expectations, writes and
-- sends begin at head + FIRST.
local FIRST = 14
local tx, bytes = batch_at(7)
local heads, head, total = {}, 1, #tx
-- By stream: the first and the last request of the batch, and how many there are.
local first_of, last_of, number_of = {}, {}, {}
while head <= total do
  heads[#heads + 1] = head
  local stream, id = tx[head + 1], tx[head + 2]
  if stream ~= '' then
    first_of[stream] = first_of[stream] or id
    last_of[stream] = id
    number_of[stream] = (number_of[stream] or 0) + 1
  end
  head = head + tx[head]
end

--[[ room.lua ]]

-- How many words the batch may store.
local stored = total - FIRST * #heads
memory_is_full = memory_is_full or has_no_room(stored, bytes)

-- By stream and id: whether the request is pending for this consumer. Requests end in about the order of their arrival,
-- so one XPENDING from the first to the last request of the batch finds nearly all of them.
local mine = {}
local function look_up(stream, first, last, most)
  go_to(bus)
  local pending = redis.pcall('XPENDING', stream, 'workers', first, last, most, consumer)
  for i = 1, #pending do mine[stream][pending[i][1]] = true end
end

for stream, number in pairs(number_of) do
  mine[stream] = {}
  look_up(stream, first_of[stream], last_of[stream], 2 * number)
end

local function is_mine(stream, id)
  if mine[stream][id] == nil then look_up(stream, id, id, 1) end
  return mine[stream][id]
end

local function wrong_type(key, wanted)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then return key .. ' holds a ' .. found .. ', not a ' .. wanted end
end

--[[ commit_answers.lua ]]

local answers
-- Returns where the group ends; or nil and the reason, if the command has another answer now.
local function unchanged_answer(i)
  answers = answers or make_answers()
  if not answers(i + 1) then return nil, 'conflict ' .. string.sub(tx[i], 1, 1) .. '  ' .. tx[i + 5] end
  return i + 4 + tx[i + 2] + tx[i + 3]
end

-- Returns where a group of expected values ends; or nil and the reason, if one of them does not hold.
local function unchanged_values(i)
  local hash, names, values, found = tx[i + 1], tonumber(tx[i + 2]), tonumber(tx[i + 3]), nil
  local last = i + 3 + names
  if hash == '' then
    found = redis.call('MGET', unpack(tx, i + 4, last))
  else
    local wrong = wrong_type(hash, 'hash')
    if wrong then return nil, wrong end
    found = redis.call('HMGET', hash, unpack(tx, i + 4, last))
  end
  for k = 1, names do
    local wanted = values > 0 and tx[last + k]
    if found[k] ~= wanted then return nil, 'conflict ' .. tx[i] .. ' ' .. hash .. ' ' .. tx[i + 3 + k] end
  end
  return last + values + 1
end

-- Returns where the groups of expectations end; or nil and the reason, if one of them does not hold.
local function unchanged(first, groups)
  local i, reason = first, nil
  for _ = 1, groups do
    go_to(says[tx[i]].number)
    if #tx[i] > 1 then i, reason = unchanged_answer(i) else i, reason = unchanged_values(i) end
    if not i then return nil, reason end
  end
  return i
end

-- A script cannot be rolled back, so everything that can make a write fail is checked before the first one. What can
-- be checked without the database, Python has checked (verbs.py).

-- Lua's numbers are exact up to 2^53 only, so a counter must stay this far from the end of 64 bits.
local MOST_INTEGER = 2 ^ 63 - 4096
-- By name of a counter: how much the transaction changes it in all, without signs. It begins with the first one.
local changes
local function wrong_counter(name, text, by)
  if text and text ~= '0' and not string.match(text, '^%-?[1-9]%d*$') then return name .. ' does not hold an integer' end
  changes = changes or {}
  changes[name] = (changes[name] or 0) + math.abs(by)
  if math.abs(text or 0) + changes[name] > MOST_INTEGER then return name .. ' would have more than 64 bits' end
end

local function wrong_integer(k)
  local wrong = wrong_type(tx[k], 'string')
  return wrong or wrong_counter(tx[k], redis.call('GET', tx[k]), tx[k + 1])
end

local function wrong_field(k)
  local wrong = wrong_type(tx[k], 'hash')
  local name = tx[k] .. ' ' .. tx[k + 1]
  return wrong or wrong_counter(name, redis.call('HGET', tx[k], tx[k + 1]), tx[k + 2])
end

-- A stream whose last id is the highest there is takes no more entries.
local function wrong_stream(key)
  local wrong = wrong_type(key, 'stream')
  if wrong or redis.call('EXISTS', key) == 0 then return wrong end
  local facts = redis.call('XINFO', 'STREAM', key)
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' and facts[i + 1] == '18446744073709551615-18446744073709551615' then
      return key .. ' takes no more entries: its last id is the highest there is'
    end
  end
end

-- How many requests of the transaction will wait.
local delayed
-- The sorted set of waiting requests, which may have only so many members; the number follows the two keys.
local function wrong_size(k)
  local wrong = wrong_type(tx[k], 'zset')
  if wrong or redis.call('ZCARD', tx[k]) + delayed >= tonumber(tx[k + 2]) then return wrong or 'too-many ' .. tx[k] end
  delayed = delayed + 1
end

--[[ append.lua ]]

--[[ options.lua ]]

--[[ place.lua ]]

local options
-- By limit: how many requests of the transaction have it. It begins with the first one.
local limited
local function wrong_limit(k, limit)
  limited = limited or {}
  local before = limited[limit] or 0
  limited[limit] = before + 1
  local code, about, waits = options.limits().refusal(limit, '0', tx[k + 2] - delayed, before)
  if code then return code .. ' ' .. about end
  if waits then delayed = delayed + 1 end
end

-- Returns why the request of the verb `place` cannot be placed now. Its words follow the first key.
local function wrong_place(k)
  options = options or make_options()
  local with = cjson.decode(tx[k + 3])
  if with.once then
    local known, code, about = options.once.check(tx[k + 6], with.once, with.sha)
    if code then return code .. ' ' .. about end
    if known then return end
  end
  if with.due then return wrong_size(k) end
  if with.limit then return wrong_limit(k, with.limit) end
  return wrong_stream('mesh:requests:' .. tx[k + 5])
end

local special = {
  bounded = wrong_size, placed = wrong_place, integer = wrong_integer, field = wrong_field,
  stream = function(k) return wrong_stream(tx[k]) end, any = function() end,
}
-- Returns where the writes end; or nil and the reason, if one of them would fail.
local function possible(first, count)
  local i = first
  changes, limited, delayed = nil, nil, 0
  for _ = 1, count do
    local said = says[tx[i]]
    for n = 1, #said.wanted do
      go_to(said.number)
      local wanted, k, wrong = said.wanted[n], i + 2 + n, nil
      if special[wanted] then wrong = special[wanted](k) else wrong = wrong_type(tx[k], wanted) end
      if wrong then return nil, wrong end
    end
    i = i + 2 + tx[i + 1]
  end
  return i
end

-- The words of the verb `ends` in the transaction that is applied now.
local ending

-- By database and key: until when the batch lets the key live. Many of its transactions name the same keys.
local kept = {}
local function keep(first)
  local key, ms = tx[first + 1], tx[first + 2]
  kept[at] = kept[at] or {}
  local before = kept[at][key]
  if not before or tonumber(before) < tonumber(ms) then kept[at][key] = ms end
end

-- Verbs that remove something; verbs of services add theirs.
local frees = {}

--[[ commit_verbs.lua ]]

--[[ ../lease/written.lua ]]

-- The keys of the own database that the batch writes to, and until when those live that `set-all` sets. There are more
-- keys than have names, without an end, if `is_known`: then no write changes what is known.
local set = 'db' .. database .. ':written'
local touched, unnamed, is_known = {}, nil, nil
local function touch(first, keys)
  if is_known == nil then is_known = redis.call('ZSCORE', set, '*') == 'inf' end
  if is_known then return end
  if tx[first] == 'set-all' then
    unnamed = math.max(unnamed or 0, tonumber(tx[first + 1]))
  else
    for k = first + 1, first + math.max(keys, 1) do touched[tx[k]] = true end
  end
end

local function note_what_is_there()
  if not unnamed and not next(touched) then return end
  go_to(database)
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local last = note_keys(set, touched, unnamed, now)
  go_to(bus)
  note_database(database, last)
end

-- The functions of our own verbs, by verb; false for a command of Redis. Creating them costs about as much as a command,
-- and most transactions need none of them.
local verbs
local ours = setmetatable({}, {__index = function(known, verb)
  known[verb] = false
  if string.byte(verb) >= 97 then
    verbs = verbs or make_verbs(keep)
    known[verb] = verbs[verb]
  end
  return known[verb]
end})

-- Returns the reason if a write fails in spite of all checks. Then the rest of its transaction is not applied, and its
-- request is not acknowledged. The other transactions are.
local function write(first, count)
  local i = first
  for _ = 1, count do
    local said, last = says[tx[i]], i + 1 + tx[i + 1]
    local run, result = ours[tx[i + 2]], nil
    go_to(said.number)
    if said.writes_own and not is_known then touch(i + 2, #said.wanted) end
    if run then result = run(i + 2, last) else result = redis.pcall(unpack(tx, i + 2, last)) end
    if type(result) == 'table' and result.err then
      return tx[i + 2] .. ' ' .. tx[i + 3] .. ': ' .. tostring(result.err)
    end
    i = last + 1
  end
end

-- Whether a transaction would fill memory further. It may have a reply of some size, and forward its request, whose
-- entry is removed. It may store as many bytes as it removes, so that a sweep can go on.
local MOST_REPLY = 256 * 1024
local function adds(first, writes, sends)
  if #tx[head + 8] > MOST_REPLY or (sends > 0 and tx[head + 1] == '') then return true end
  if not frees.DEL then
    for verb in string.gmatch('DEL UNLINK HDEL ZREM SREM LTRIM', '%a+') do frees[verb] = true end
    verbs = verbs or make_verbs(keep)
  end
  local added, i = 0, first
  for _ = 1, writes do
    local verb, last, bytes = tx[i + 2], i + 1 + tonumber(tx[i + 1]), 0
    -- Of ZADD only the members count: a group that the sweep puts down anew is as long as before.
    for k = i + (verb == 'ZADD' and 5 or 4), last, verb == 'ZADD' and 2 or 1 do bytes = bytes + #tx[k] end
    if frees[verb] then
      added = added - bytes
    elseif verb ~= 'PEXPIREAT' and verb ~= 'PERSIST' and verb ~= 'keep' and verb ~= 'ends'
      and string.byte(tx[i]) ~= 50 then
      added = added + bytes
    end
    i = last + 1
  end
  return added > 0
end

local SEND = 8

--[[ further_fields.lua ]]

local accepted, sendable = 0, {}
-- Returns the reason if a send is not possible; then none was made. Sends come before writes, because they can be
-- undone.
local function send(first, count)
  if count == 0 then return end
  go_to(bus)
  local last, done = first + (count - 1) * SEND, {}
  for i = first, last, SEND do
    local stream = 'mesh:requests:' .. tx[i]
    local wrong = not sendable[stream] and wrong_type(stream, 'stream')
    if wrong then return wrong end
    sendable[stream] = true
  end
  for i = first, last, SEND do
    local stream = 'mesh:requests:' .. tx[i]
    local id = append(stream, 'op', tx[i + 1], 'request', tx[i + 2], 'from', tx[i + 6],
      'reply_to', tx[i + 3], 'deadline', tx[i + 4], 'body', tx[i + 5], unpack(further_fields(tx[i + 7])))
    if type(id) == 'table' then
      for _, one in ipairs(done) do redis.call('XDEL', one[1], one[2]) end
      return stream .. ': ' .. tostring(id.err)
    end
    done[#done + 1] = {stream, id}
  end
  accepted = accepted + count
end

-- The words of the verb `ends`, by the number of their transaction: only where the request has options.
local endings = {}

-- Returns nothing, or why a transaction is not applied.
local function commit(number)
  head = heads[number]
  local stream, id = tx[head + 1], tx[head + 2]
  local expects, writes, sends = tx[head + 9], tx[head + 10], tx[head + 11]
  if stream ~= '' and not is_mine(stream, id) then return 'not-mine' end
  local first_write, changed = unchanged(head + FIRST, expects)
  if not first_write then return changed end
  if memory_is_full and adds(first_write, writes, sends) then return 'full' end
  local first_send, wrong = possible(first_write, writes)
  if not first_send then return wrong end
  local failed = send(first_send, sends) or write(first_write, writes)
  if failed then return failed end
  if stream ~= '' then mine[stream][id] = false end
  endings[number], ending = ending, nil
end

-- If the key is not a stream, no caller reads it; the replies of the other transactions are written all the same.
local function reply(...)
  redis.pcall('XADD', tx[head + 3], 'NOMKSTREAM', '*', 'request', tx[head + 4], 'op', tx[head + 5], 'from', consumer,
    'status', tx[head + 6], 'forwards', tx[head + 7], 'body', tx[head + 8], 'asked', tx[head + 2], 'took_us', tx[head + 12],
    'db', database, ...)
end

local function end_options(words)
  options = options or make_options()
  local fields = options.named(words)
  local answer = {status = tx[head + 6], body = tx[head + 8], from = consumer, asked = tx[head + 2], db = database}
  options.ended(fields, answer, fields.kept == '1')
end

local outcomes, ids_of, answered, expired = {}, {}, 0, 0
local function finish(number)
  head = heads[number]
  local stream = tx[head + 1]
  if tx[head + 3] ~= '' then
    if tx[head + 13] == '' then reply() else reply('call', tx[head + 13]) end
  end
  if endings[number] then end_options(endings[number]) end
  if stream ~= '' then
    local ids = ids_of[stream] or {}
    ids[#ids + 1], ids_of[stream] = tx[head + 2], ids
    -- The handler itself has found that the deadline has passed.
    if tx[head + 6] == 'deadline' then expired = expired + 1 else answered = answered + 1 end
  end
end

for number = 1, #heads do outcomes[number] = commit(number) or 'done' end
for number, lifetimes in pairs(kept) do
  go_to(number)
  for key, ms in pairs(lifetimes) do
    redis.call('PEXPIREAT', key, ms, 'NX')
    redis.call('PEXPIREAT', key, ms, 'GT')
  end
end
note_what_is_there()
go_to(bus)
for number = 1, #heads do
  if outcomes[number] == 'done' then finish(number) end
end
for stream, ids in pairs(ids_of) do
  redis.call('XACK', stream, 'workers', unpack(ids))
  redis.call('XDEL', stream, unpack(ids))
end
if accepted > 0 then redis.pcall('HINCRBY', books_key, 'accepted', accepted) end
if answered > 0 then redis.pcall('HINCRBY', books_key, 'answered', answered) end
if expired > 0 then redis.pcall('HINCRBY', books_key, 'expired', expired) end
local result = cjson.encode(outcomes)
redis.call('SET', committed_key, batch .. result, 'PX', remembered_ms)
return result
