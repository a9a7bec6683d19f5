#!lua
-- Applies a batch of transactions. For each transaction, the script makes the sends and the writes, answers the caller,
-- acknowledges the request and counts it in the books. Redis cannot roll a script back. So the script checks all that can
-- make a transaction fail before the first write of that transaction. If a check fails, the transaction changes nothing.
-- A line such as `[[ batch.lua ]]` in a comment stands for that file: scripts.py puts it there. scripts.py also makes three
-- variants of the script:
--   complete            runs any batch while the server has memory. The server refuses this variant when its memory is full.
--                       room.lua, a part of the script, refuses a batch that would exceed `maxmemory`.
--   for a full memory   gets a batch that was refused because memory is full (`allow-oom`; `memory_is_full` is true). It
--                       applies only the transactions that store nothing more. These finish accepted requests, which frees
--                       memory.
--   plain               lacks commit_seldom.lua. The link chooses it for batches that need nothing of that file, because it
--                       saves time: see submit.lua.
-- KEYS: lease, books, committed
-- ARGV: holder, how long to keep the result of the batch (ms), database, bus database, consumer, number of the batch, and
--       the words of all transactions, as batch.lua reads them. The first word of a transaction is the number of its words.
--       The others are:
--   stream, id            of the request. Both are "" for a transaction that the replica makes without a request. A request
--                         that ran in place (see in_place.py) has an id and the stream "": it is pending for nobody. So
--                         `commit` does not look it up, and the verb `pass` does what else a request needs: it checks that
--                         the request may run, puts its entry on the stream and takes it off, and counts it in the books.
--   reply stream, name, op, status, forwards, body    of the reply; the reply stream is "" if no caller waits. The name is
--                         the caller's name of the request, and `forwards` says how many more replies follow from elsewhere.
--   number of groups of expectations, number of writes, number of sends
--   how long the handler worked (µs), and the field `call` of the request, or ""
--   The counts among these words, and the µs, are JSON numbers. All other words are texts, also numbers in later words.
--   Then come the groups of expectations, the writes and the sends:
--   expectations  "1" (own keys) or "0" (shared keys), hash, number of names, number of values, the names, the values.
--                 The names are fields of the hash, or keys if the hash is "". There is one value for each name, or none:
--                 then all names must be absent.
--                 Or "1r" (own key) or "0r" (shared key), and a reading command with its answer: see commit_answers.lua.
--   write         A text such as "1 hash zset", the number of words of the command, and these words: verb, key, ... The text
--                 begins with "1" (own keys), "0" (shared keys) or "2" (own keys; the verb only reads them, for the reply).
--                 After it the text may name checks: the first for the command's first key, the second for the second key,
--                 and so on. A verb in small letters is one of commit_verbs.lua.
--                 The checks, which the script makes before the first write:
--                   a type      the key is absent or has this type
--                   "integer"   the key is absent, or a string that the command can increase
--                   "field"     the field is absent, or the command can increase it; the key is a hash
--                   "bounded"   the key is the sorted set of waiting requests, and has room
--                   "placed"    the limit and the idempotency key of a request that the verb `place` sends allow it now
--                   "passable"  the request of the transaction may run in place: see the verb `pass`
--                   "any"       no check
--   send          to, op, name, reply stream, deadline, body, from, and further fields in one word: see further_fields.lua
-- Returns a JSON list with one text per transaction: done, not-mine, full, "too-many <key>", "limited <ms> <lane>",
-- "key-reused <idempotency key>", "conflict <side> <hash> <name>", or why a write or a send is not possible
local lease_key, books_key, committed_key = KEYS[1], KEYS[2], KEYS[3]
-- `database` and `bus` are the numbers of the two databases. `batch` is the number of the batch, with a blank after it. `held`
-- is what the lease says now, and `before` is the number and the result of the latest batch.
local holder, remembered_ms, database, bus = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local consumer, batch = ARGV[5], ARGV[6] .. ' '
local memory_is_full = false
local held, before = unpack(redis.call('MGET', lease_key, committed_key))
-- A missing lease is not always lost: if the server was emptied, the next renewal may restore the lease.
if not held then return redis.error_reply('LEASEGONE there is no lease at the moment') end
if held ~= holder then return redis.error_reply('LEASELOST another replica holds the lease') end
-- If this batch was applied before, only its answer was lost on the way: return the stored answer.
if before and string.sub(before, 1, #batch) == batch then return string.sub(before, #batch + 1) end
-- A batch with a lower number than the latest one comes late, over a connection that its sender has closed. It was sent again
-- over another connection, and applied.
if before and tonumber(ARGV[6]) < (tonumber(string.match(before, '^(%d+) %[')) or 0) then
  return redis.error_reply('ERR this batch comes late: a later one was applied')
end

-- SELECT costs as much as any other command, so the script changes to the bus database as seldom as it can. It looks up the
-- requests of all transactions before the first transaction, and writes all replies and acknowledgements after the last one.
local selected = bus
local function go_to(target)
  if selected ~= target then
    redis.call('SELECT', target)
    selected = target
  end
end

-- Selects the database of an expectation or a write. Its first word, `word`, begins with "0" for shared keys; they are in the
-- bus database. It begins with "1" for own keys, and with "2" for own keys that are only read. SHARED and OWN are the bytes of
-- "0" and "1".
local SHARED, OWN = 48, 49
local function go_to_side(word) go_to(string.byte(word) == SHARED and bus or database) end

-- The number of the argument that has the batch. batch.lua reads this argument into `words`.
local BATCH_ARGUMENT = 7
-- This part defines `words` and `bytes`.
--[[ batch.lua ]]

-- `tx` has the words of all transactions of the batch, not of one: the verbs of services know the list by this name. `heads`
-- has the position of each transaction's first word. The present transaction begins at tx[head], with HEAD_WORDS words about
-- the request and its reply. Then its expectations, writes and sends follow.
local HEAD_WORDS = 14
local tx, heads, head, total = words, {}, 1, #words
-- Three tables by stream: the ids of the first and of the last of its requests in the batch, and the number of these requests.
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

-- About how many words the batch stores, for room.lua: all but the first HEAD_WORDS words of each transaction.
local words_to_store = total - HEAD_WORDS * #heads
--[[ room.lua ]]

-- By stream and id: true if the request is pending for this consumer, and false once this batch has ended it. Requests end
-- nearly in the order of their arrival. So one XPENDING, from the first to the last request of the batch, finds nearly all
-- of them. It asks for twice as many entries as the batch has, because requests that are still in progress may lie between
-- them. `commit` looks up each request that is not found in this way.
local mine = {}
local function look_up(stream, first, last, most)
  go_to(bus)
  -- An error, for instance because somebody has deleted the stream, is a table without elements: then no request is found.
  local pending = redis.pcall('XPENDING', stream, 'workers', first, last, most, consumer)
  for i = 1, #pending do mine[stream][pending[i][1]] = true end
end

for stream, number in pairs(number_of) do
  mine[stream] = {}
  look_up(stream, first_of[stream], last_of[stream], 2 * number)
end

-- Returns nothing if a key is absent or has the type `wanted`. Otherwise returns a text that names the type of the key.
local function wrong_type(key, wanted)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then return key .. ' holds a ' .. found .. ', not a ' .. wanted end
end

-- The parts of this script below share its locals. commit_seldom.lua and commit_verbs.lua read most of them, and change four:
-- `accepted`, `answered`, `ending` and `expiries`. A verb of a service may also change tx[head + 8], the body of the reply.
-- Only this file changes `head` and `mine`.

-- `accepted` is how many requests the batch has put on streams, and `answered` how many it has answered, as the books count
-- them. The script adds both to the books once, at its end.
local accepted, answered = 0, 0
-- The words of the verb `ends` of the present transaction: the options of its request (see options.lua). It is nil if the
-- transaction has no such verb. The verb is the last one of its transaction, so `commit` always takes these words over:
-- no write can fail after it and leave them to the next transaction.
local ending
-- By database and key: when the key is to expire at the earliest (ms). The verb `keep` of commit_verbs.lua fills it. Many
-- transactions of a batch name the same key, so the script sets its expiry once, after all of them.
local expiries = {}

-- Each function costs time at every run of the script: to create it, and to bind each outer variable that it uses. To free its
-- memory later costs about as much again. So the functions that few transactions need are created together, when one of them is
-- needed for the first time: `seldom()` returns them. For the same reason, code that runs only once is in no function.
--[[ commit_seldom.lua ]]
local seldom_functions
local function seldom()
  seldom_functions = seldom_functions or make_seldom()
  return seldom_functions
end

-- Compares the group of expected values that begins at tx[i]. Returns the position after the group; or nil and the reason,
-- if a value has changed or the key is not a hash. In a group without values, `wanted` is false for each name, because Redis
-- answers false for an absent key or field.
local function check_expectations(i)
  local hash, name_count, value_count, found = tx[i + 1], tonumber(tx[i + 2]), tonumber(tx[i + 3]), nil
  local last_name = i + 3 + name_count  -- writes.py makes groups of at most 4000 names, because `unpack` takes about 8000
  if hash == '' then
    found = redis.call('MGET', unpack(tx, i + 4, last_name))
  else
    local wrong = wrong_type(hash, 'hash')
    if wrong then return nil, wrong end
    found = redis.call('HMGET', hash, unpack(tx, i + 4, last_name))
  end
  for k = 1, name_count do
    local wanted = value_count > 0 and tx[last_name + k]
    if found[k] ~= wanted then return nil, 'conflict ' .. tx[i] .. ' ' .. hash .. ' ' .. tx[i + 3 + k] end
  end
  return last_name + value_count + 1
end

-- By the first word of a write: the list of checks that this word names. `is_special` says whether a check needs more than
-- the type of a key: then it is one of commit_checks.lua. Many writes begin with the same word, so each word is parsed once.
local checks = {}
-- Checks all that can make a write fail, before the first write, because Redis cannot roll a script back. The first of the
-- `count` writes is at tx[first]. verbs.py has already checked what can be checked without the database.
-- Returns the position after the writes; or nil and the reason, if a write would fail. `each` has the names of all checks of
-- one write.
local function check_writes(first, count)
  local i = first
  if seldom_functions then seldom_functions.begin_checks() end
  for _ = 1, count do
    local word = tx[i]
    if #word > 1 then
      local each = checks[word]
      if not each then
        each = {is_special = false}
        for name in string.gmatch(word, '%a+') do
          each[#each + 1] = name
          -- These are the names in `special_checks` of commit_checks.lua, which the plain variant lacks. "stream" looks at
          -- more than the type, and "any" is no type that `wrong_type` could look for.
          if string.find(' bounded placed passable integer field stream any ', ' ' .. name .. ' ', 1, true) then
            each.is_special = true
          end
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

-- The sorted set db<n>:written says which keys the own database holds, and until when (see lease/written.lua). For this set,
-- `named_keys` collects the own keys that the batch writes, but not the many keys of the verb `set-all`. `unnamed_until` is the
-- moment (ms) at which the last of those expires. `holds_forever` is true if the set already says that the database holds data
-- for ever ("*" has the score inf). Then no write can change what the set says. `holds_forever` is nil until the set is read.
local written_set = 'db' .. database .. ':written'
local named_keys, unnamed_until, holds_forever = {}, nil, nil

-- Makes the `count` writes of a transaction; the first is at tx[first]. Returns the reason if a write fails in spite of all
-- checks. Then the script does not make the later writes of this transaction, and does not acknowledge its request. It still
-- applies the other transactions.
local function make_writes(first, count)
  local i = first
  for _ = 1, count do
    local word, verb, last, result = tx[i], tx[i + 2], i + 1 + tx[i + 1], nil
    local is_own = string.byte(word) == OWN
    go_to_side(word)
    -- An error is no text: somebody has overwritten the set, and `note_keys` makes it anew.
    if is_own and holds_forever == nil then holds_forever = redis.pcall('ZSCORE', written_set, '*') == 'inf' end
    if is_own and not holds_forever then
      if verb == 'set-all' then
        unnamed_until = math.max(unnamed_until or 0, tonumber(tx[i + 3]))
      else
        -- A write has one check for each of its keys. Without checks it has one key.
        for k = i + 3, i + 2 + (#word > 1 and #checks[word] or 1) do named_keys[tx[k]] = true end
      end
    end
    -- Our own verbs begin with a small letter; "a" is byte 97.
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

-- By number of a transaction in the batch (1 for the first): the words of its verb `ends`. Only transactions of requests with
-- options have this verb.
local endings = {}

-- Checks the transaction number `nth` of the batch, and makes its sends and writes. Returns why the transaction is not applied;
-- nothing if it is.
local function commit(nth)
  head = heads[nth]
  local stream, id = tx[head + 1], tx[head + 2]
  local group_count, write_count, send_count = tx[head + 9], tx[head + 10], tx[head + 11]
  if stream ~= '' then
    if mine[stream][id] == nil then look_up(stream, id, id, 1) end
    if not mine[stream][id] then return 'not-mine' end
  end
  -- Each check moves `first_write` to the position after its group; after the last group, the first write is there.
  local first_write, reason = head + HEAD_WORDS, nil
  for _ = 1, group_count do
    local word = tx[first_write]
    go_to_side(word)
    if #word > 1 then
      first_write, reason = seldom().unchanged_answer(first_write)
    else
      first_write, reason = check_expectations(first_write)
    end
    if reason then return reason end
  end
  if memory_is_full and seldom().adds(first_write, write_count, send_count) then return 'full' end
  local first_send, wrong = check_writes(first_write, write_count)
  if not first_send then return wrong end
  -- The words have the writes first, but the sends are made first: the script can undo a send, but not a write. If a write
  -- fails afterwards, the sends and the writes before it stay.
  local failed = send_count > 0 and seldom().send(first_send, send_count) or make_writes(first_write, write_count)
  if failed then return failed end
  if stream ~= '' then mine[stream][id] = false end
  endings[nth], ending = ending, nil
end

local outcomes, ids_of, expired = {}, {}, 0
for nth = 1, #heads do outcomes[nth] = commit(nth) or 'done' end
-- GT moves an expiry that is there, but only to a later moment; NX gives one to a key that has none.
-- The own database comes last, because `note_keys` goes on there. It need not read an expiry that is set here.
for _, of_database in ipairs({bus, database}) do
  local expiry_of = expiries[of_database] or {}
  if next(expiry_of) then go_to(of_database) end
  for key, ms in pairs(expiry_of) do
    local is_set = redis.call('PEXPIREAT', key, ms, 'GT') == 1 or redis.call('PEXPIREAT', key, ms, 'NX') == 1
    if is_set and of_database == database and named_keys[key] then named_keys[key] = ms end
  end
end
if unnamed_until or next(named_keys) then
  --[[ ../lease/written.lua ]]
  go_to(database)
  local time = redis.call('TIME')
  local held_until = note_keys(written_set, named_keys, unnamed_until, time[1] * 1000 + math.floor(time[2] / 1000))
  go_to(bus)
  note_database(database, held_until)
end
go_to(bus)
-- All entries without the field `call` share this empty list.
local no_field = {}
for nth = 1, #heads do
  if outcomes[nth] == 'done' then
    head = heads[nth]
    local stream = tx[head + 1]
    if tx[head + 3] ~= '' then
      local call_field = tx[head + 13] == '' and no_field or {'call', tx[head + 13]}
      -- XADD fails if the key is not a stream. Then no caller can read a reply there. The other replies are still written.
      redis.pcall('XADD', tx[head + 3], 'NOMKSTREAM', '*', 'request', tx[head + 4], 'op', tx[head + 5], 'from', consumer,
        'status', tx[head + 6], 'forwards', tx[head + 7], 'body', tx[head + 8], 'asked', tx[head + 2],
        'took_us', tx[head + 12], 'db', database, unpack(call_field))
    end
    if endings[nth] then seldom().end_options(endings[nth]) end
    if stream ~= '' then
      local ids = ids_of[stream] or {}
      ids[#ids + 1], ids_of[stream] = tx[head + 2], ids
      -- The status is "deadline" if the handler has found that the deadline has passed: the request counts as expired.
      if tx[head + 6] == 'deadline' then expired = expired + 1 else answered = answered + 1 end
    end
  end
end
-- These commands do not fail, because XPENDING has found each of the entries. `unpack` takes all ids: the link puts at most
-- 20,000 words into a batch, and a transaction has at least HEAD_WORDS.
for stream, ids in pairs(ids_of) do
  redis.call('XACK', stream, 'workers', unpack(ids))
  redis.call('XDEL', stream, unpack(ids))
end
-- Everything is applied by now. So an error at the books, whose key may have another type, must not end the script.
if accepted > 0 then redis.pcall('HINCRBY', books_key, 'accepted', accepted) end
if answered > 0 then redis.pcall('HINCRBY', books_key, 'answered', answered) end
if expired > 0 then redis.pcall('HINCRBY', books_key, 'expired', expired) end
local result = cjson.encode(outcomes)
redis.call('SET', committed_key, batch .. result, 'PX', remembered_ms)
return result
