#!lua
-- Applies transactions: of each, its sends, writes, reply, acknowledgement and books. A script cannot be rolled back,
-- so everything that can make a transaction fail is checked before its first write, and one that would fail changes
-- nothing. There are three of this script. When memory is full, or a batch would exceed it, the server or room.lua refuses
-- this one. Then the second one, with `allow-oom`, applies the transactions that store nothing. They finish what was
-- accepted, and that frees memory. The third one lacks commit_seldom.lua: see submit.lua.
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

-- Selects the database of an expectation or a write by its first byte: "0" stands for shared keys, "1" for own ones, "2" for
-- own ones that are only read.
local SHARED, OWN = 48, 49
local function go_to_side(word) go_to(string.byte(word) == SHARED and bus or database) end

local PLACE = 7
--[[ batch.lua ]]

-- The words of all transactions, and where each begins. The one at hand begins at `head`; its expectations, writes and
-- sends begin at head + FIRST.
local FIRST = 14
local tx, heads, head, total = words, {}, 1, #words
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

local stored = total - FIRST * #heads
--[[ room.lua ]]

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

local function wrong_type(key, wanted)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then return key .. ' holds a ' .. found .. ', not a ' .. wanted end
end

-- How many requests the batch has accepted.
local accepted = 0
-- The words of the verb `ends` in the transaction that is applied now.
local ending
-- By database and key: until when the batch lets the key live. Many of its transactions name the same keys.
local kept = {}

-- A script pays for each of its functions at every run: to create it, for each variable of the script that it uses, and later
-- as much again to free its memory. So the functions that few transactions need are created together when the first of them is
-- needed, and what stands in one place is no function.
--[[ commit_seldom.lua ]]
local created
local function seldom()
  created = created or make_seldom()
  return created
end

-- Returns where a group of expected values ends; or nil and the reason, if one of them does not hold.
local function unchanged(i)
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

-- By the first word of a write: what to check before it, and whether that is more than types. Read once for each such word
-- of the batch.
local checks = {}
-- A script cannot be rolled back, so everything that can make a write fail is checked before the first one. What can
-- be checked without the database, Python has checked (verbs.py).
-- Returns where the writes end; or nil and the reason, if one of them would fail.
local function possible(first, count)
  local i = first
  if created then created.begin_checks() end
  for _ = 1, count do
    local word = tx[i]
    if #word > 1 then
      local each = checks[word]
      if not each then
        each = {is_special = false}
        for name in string.gmatch(word, '%a+') do
          each[#each + 1] = name
          if string.find(' bounded placed integer field stream any ', ' ' .. name .. ' ', 1, true) then each.is_special = true end
        end
        checks[word] = each
      end
      go_to_side(word)
      for n = 1, #each do
        local wanted, k, wrong = each[n], i + 2 + n, nil
        if each.is_special then wrong = seldom().check(wanted, k) else wrong = wrong_type(tx[k], wanted) end
        if wrong then return nil, wrong end
      end
    end
    i = i + 2 + tx[i + 1]
  end
  return i
end

-- The keys of the own database that the batch writes to, and until when those live that `set-all` sets. There are more
-- keys than have names, without an end, if `is_known`: then no write changes what is known.
local set = 'db' .. database .. ':written'
local touched, unnamed, is_known = {}, nil, nil

-- Returns the reason if a write fails in spite of all checks. Then the rest of its transaction is not applied, and its
-- request is not acknowledged. The other transactions are.
local function write(first, count)
  local i = first
  for _ = 1, count do
    local word, verb, last, result = tx[i], tx[i + 2], i + 1 + tx[i + 1], nil
    local is_own = string.byte(word) == OWN
    go_to_side(word)
    if is_own and is_known == nil then is_known = redis.call('ZSCORE', set, '*') == 'inf' end
    if is_own and not is_known then
      if verb == 'set-all' then
        unnamed = math.max(unnamed or 0, tonumber(tx[i + 3]))
      else
        for k = i + 3, i + 2 + (#word > 1 and #checks[word] or 1) do touched[tx[k]] = true end
      end
    end
    -- Our own verbs have small letters.
    if string.byte(verb) >= 97 then
      result = seldom().verbs()[verb](i + 2, last)
    else
      result = redis.pcall(unpack(tx, i + 2, last))
    end
    if type(result) == 'table' and result.err then
      return verb .. ' ' .. tx[i + 3] .. ': ' .. tostring(result.err)
    end
    i = last + 1
  end
end

-- The words of the verb `ends`, by the number of their transaction: only where the request has options.
local endings = {}

-- Returns nothing, or why a transaction is not applied.
local function commit(number)
  head = heads[number]
  local stream, id = tx[head + 1], tx[head + 2]
  local groups, writes, sends = tx[head + 9], tx[head + 10], tx[head + 11]
  if stream ~= '' then
    if mine[stream][id] == nil then look_up(stream, id, id, 1) end
    if not mine[stream][id] then return 'not-mine' end
  end
  local first_write, changed = head + FIRST, nil
  for _ = 1, groups do
    local word = tx[first_write]
    go_to_side(word)
    if #word > 1 then
      first_write, changed = seldom().unchanged_answer(first_write)
    else
      first_write, changed = unchanged(first_write)
    end
    if changed then return changed end
  end
  if memory_is_full and seldom().adds(first_write, writes, sends) then return 'full' end
  local first_send, wrong = possible(first_write, writes)
  if not first_send then return wrong end
  local failed = sends > 0 and seldom().send(first_send, sends) or write(first_write, writes)
  if failed then return failed end
  if stream ~= '' then mine[stream][id] = false end
  endings[number], ending = ending, nil
end

local outcomes, ids_of, answered, expired = {}, {}, 0, 0
for number = 1, #heads do outcomes[number] = commit(number) or 'done' end
for number, lifetimes in pairs(kept) do
  go_to(number)
  for key, ms in pairs(lifetimes) do
    redis.call('PEXPIREAT', key, ms, 'NX')
    redis.call('PEXPIREAT', key, ms, 'GT')
  end
end
if unnamed or next(touched) then
  --[[ ../lease/written.lua ]]
  go_to(database)
  local time = redis.call('TIME')
  local last = note_keys(set, touched, unnamed, time[1] * 1000 + math.floor(time[2] / 1000))
  go_to(bus)
  note_database(database, last)
end
go_to(bus)
local no_call = {}
for number = 1, #heads do
  if outcomes[number] == 'done' then
    head = heads[number]
    local stream = tx[head + 1]
    if tx[head + 3] ~= '' then
      local call = tx[head + 13] == '' and no_call or {'call', tx[head + 13]}
      -- If the key is not a stream, no caller reads it; the replies of the other transactions are written all the same.
      redis.pcall('XADD', tx[head + 3], 'NOMKSTREAM', '*', 'request', tx[head + 4], 'op', tx[head + 5], 'from', consumer,
        'status', tx[head + 6], 'forwards', tx[head + 7], 'body', tx[head + 8], 'asked', tx[head + 2],
        'took_us', tx[head + 12], 'db', database, unpack(call))
    end
    if endings[number] then seldom().end_options(endings[number]) end
    if stream ~= '' then
      local ids = ids_of[stream] or {}
      ids[#ids + 1], ids_of[stream] = tx[head + 2], ids
      -- The handler itself has found that the deadline has passed.
      if tx[head + 6] == 'deadline' then expired = expired + 1 else answered = answered + 1 end
    end
  end
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
