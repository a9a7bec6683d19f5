#!lua
-- Puts groups of requests on their streams: of a group all requests, or none if one of them has no live replica or a
-- full queue.
-- There are two of this script. The server refuses this one when memory is full; then the other one, with `allow-oom`,
-- submits the groups that only read, and refuses the rest. This one does the same for a batch that would exceed the
-- memory.
-- KEYS: lease (of a client: its presence), books, submitted
-- ARGV: holder, how long to remember the batch (ms), databases, bound of a stream, sender, reply stream,
--       requests a replica works on at once, number of the batch, and the groups, as batch.lua reads
--       them. The words of a group: the number of its requests, further fields of all its entries ("name value name value", or ""), and of each
--       request: to (class, "db<n>", "*": every live database, or "* <filter> <hash> <hash>": those of them that may
--       have something, see filters.py), op, key, ttl (ms, 0: never), body.
--       A group's number is negative if its requests only read. It is 0 for one request that nobody waits for; instead
--       of the ttl this has "0" (it begins at once) or "<most that may wait> <due>", where due is "<ms>", or "+<ms>":
--       from now on. A request with options is a group of its own; they follow the ttl as JSON, "5000 {...}":
--         once, sha, keep   idempotency key, SHA-1 of the body, how long (ms) the answer is kept
--         limit, most       as limits.lua reads it, and how many requests may wait in all
--         due, most         when a request with an idempotency key begins that nobody waits for. One with a due time and
--                           without a key has no JSON; its limit is a third word, after the due time
-- Returns one item per group, as JSON: [id, ...], where every live database was asked [{"db<n>": id, ...}, [n, ...]]
--       with the databases that hold data and nobody asks; [""] for a request that waits until it is due, or
--       whose answer is on its way; or {"error": code, "about": what}. A call with an idempotency key gets the id of the
--       request that it waits for. A request that waits for its limit has its name, after an "@".
local lease_key, books_key, submitted_key = KEYS[1], KEYS[2], KEYS[3]
local holder, remembered_ms, databases, bound = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local sender, reply_to, concurrency, batch = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8] .. ' '
local WORDS = 5
local memory_is_full = false

local held, before = unpack(redis.call('MGET', lease_key, submitted_key))
-- A missing lease may come back: after the server was emptied, the next renewal decides.
if not held then return redis.error_reply('LEASEGONE there is no lease at the moment') end
if held ~= holder then return redis.error_reply('LEASELOST another replica holds the lease') end
if before and string.sub(before, 1, #batch) == batch then return string.sub(before, #batch + 1) end

--[[ room.lua ]]

--[[ batch.lua ]]

-- The words of all groups. The requests of a group begin FIRST words after its own beginning.
local FIRST = 3
local groups, bytes = batch_at(9)
memory_is_full = memory_is_full or has_no_room(#groups, bytes)

-- The rows of the roster are read only as far as they are needed, and each of them once.
local classes = {}
local function class_of(n)
  if classes[n] == nil then classes[n] = redis.call('HGET', 'mesh:replica:' .. n, 'class') end
  return classes[n]
end

local live = {}
local function is_live(to)
  if live[to] == nil then
    live[to] = false
    local n = tonumber(string.match(to, '^db(%d+)$'))
    if n then live[to] = class_of(n) ~= false end
    -- Database 0 is leased last, so it is looked up last.
    for k = 1, n and 0 or databases do
      if class_of(k % databases) == to then
        live[to] = true
        break
      end
    end
  end
  return live[to]
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The databases that hold data, as the commits that write there note.
local written
local function holding()
  written = written or redis.call('ZRANGEBYSCORE', 'mesh:written', '(' .. now, '+inf')
  return written
end

-- Databases that hold data and are not live: those whose holder is expected back, and the others.
local expected, left_out
local function look_for_missing()
  if expected then return end
  expected, left_out = {}, {}
  for _, n in ipairs(holding()) do
    if not class_of(tonumber(n)) then
      local is_expected = redis.call('EXISTS', 'mesh:expected:' .. n) == 1
      table.insert(is_expected and expected or left_out, n)
    end
  end
end

-- Whether the holder of a database, or any holder of a class, is expected back.
local function is_expected(to)
  local n = string.match(to, '^db(%d+)$')
  if n then return redis.call('EXISTS', 'mesh:expected:' .. n) == 1 end
  for k = 0, databases - 1 do
    if redis.call('GET', 'mesh:expected:' .. k) == to then return true end
  end
end

local function holds_data(n)
  for _, each in ipairs(holding()) do
    if tonumber(each) == n then return true end
  end
  return false
end

-- Returns whether a database is live and may have what a gather asks for. It has nothing of it if its filter lacks one of
-- the two bits. A filter without its last bit has ended, or somebody has deleted it, and does not count. Then the database
-- is asked if it holds any data.
local function may_have(n, field, one, other)
  local class, named = unpack(redis.call('HMGET', 'mesh:replica:' .. n, 'class', field))
  classes[n] = class
  local key, bits = string.match(named or '', '^(%S+) (%d+)$')
  if not class or not key then return class end
  if redis.pcall('GETBIT', key, bits) ~= 1 then return holds_data(n) end
  return redis.call('GETBIT', key, one % bits) == 1 and redis.call('GETBIT', key, other % bits) == 1
end

-- By what the address says: the live databases that a gather asks.
local asked = {}
local function all(to)
  if not asked[to] then
    asked[to] = {}
    local name, one, other = string.match(to, '^%* (%S+) (%d+) (%d+)$')
    for n = 0, databases - 1 do
      local is_asked
      if name then is_asked = may_have(n, 'filter:' .. name, one, other) else is_asked = class_of(n) end
      if is_asked then table.insert(asked[to], 'db' .. n) end
    end
  end
  return asked[to]
end

local function is_gather(to) return string.byte(to) == 42 end

-- Returns how long the next request of a class has waited, in ms; 0 while the replicas of the class have less than half
-- of the requests that they work on at once, because then they have room or do not run.
local function delay_of(class)
  local stream = 'mesh:requests:' .. class
  local found, group = redis.pcall('XINFO', 'GROUPS', stream), {}
  local flat = not found.err and found[1] or {}
  for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
  local last, members = group['last-delivered-id'], 0
  -- A live class has one replica at least.
  if not last or group.pending < concurrency / 2 then return 0 end
  local next = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)[1]
  if not next then return 0 end
  for n = 0, databases - 1 do
    if class_of(n) == class then members = members + 1 end
  end
  if group.pending < members * concurrency / 2 then return 0 end
  return now - tonumber(string.match(next[1], '^%d+'))
end

-- The queue of a class may be no older than a tenth of a request's deadline. The last request of a growing queue waits
-- several times the queue's age; in a queue as old as a whole deadline, every request begins just before its deadline
-- and none is finished. The stream of a database has one worker, and is bounded by its length only.
local waiting, delays = {}, {}
local function is_full(to, ttl)
  local number = (waiting[to] or redis.call('XLEN', 'mesh:requests:' .. to)) + 1
  waiting[to] = number
  if number > bound then return true end
  if ttl == '0' or number == 1 then return false end
  if not delays[to] then delays[to] = string.sub(to, 1, 2) == 'db' and 0 or delay_of(to) end
  return delays[to] > 0 and delays[to] > ttl / 10
end

--[[ append.lua ]]

--[[ options.lua ]]

--[[ place.lua ]]

-- By the word of a ttl: the deadline, and the options that follow it.
local option, once
local deadlines, options = {['0'] = '0'}, {}
local function read_ttl(word)
  local ttl, json = string.match(word, '^(%d+) (.*)$')
  if json then
    options[word] = cjson.decode(json)
    options[word].ttl = ttl
    option = option or make_options()
    once = option.once
  end
  ttl = ttl or word
  deadlines[word] = ttl == '0' and '0' or string.format('%.0f', now + ttl)
end

local function waiting_are_full(most) return redis.call('ZCARD', 'mesh:later') >= tonumber(most) end

-- Returns why a group of requests is refused, as a code and what that is about; nothing if it can be submitted.
local function refused(first, last, only_reads)
  for at = first, last, WORDS do
    local to, ttl, code, about = groups[at], groups[at + 3], nil, nil
    if not deadlines[ttl] then read_ttl(ttl) end
    local with = options[ttl]
    if with and with.once then
      -- Calls of several operations share `with` if their words are the same.
      with.known, code, about = once.check(groups[at + 1], with.once, with.sha)
      if code or with.known then return code, about end
    end
    if memory_is_full and not only_reads then return 'full', '' end
    if live[to] and not with then
      if is_full(to, ttl) then return 'busy', to end
    elseif with and with.due then
      -- Its address needs no replica until it is due.
      if waiting_are_full(with.most) then return 'too-many', '' end
    elseif not is_gather(to) then
      if not is_live(to) then return is_expected(to) and 'missing' or 'no-replica', to end
      if is_full(to, with and with.ttl or ttl) then return 'busy', to end
      if with and with.limit then
        code, about = option.limits().refusal(with.limit, deadlines[ttl], with.most)
        if code then return code, about end
      end
    else
      local every = all(to)
      look_for_missing()
      if #expected > 0 then return 'missing', table.concat(expected, ' ') end
      for _, each in ipairs(every) do
        if is_full(each, '0') then return 'busy', each end
      end
    end
  end
end

--[[ further_fields.lua ]]

local accepted, further = 0, nil
-- Returns the id of a request with options; "@" and its name if it waits; or an error, if it cannot wait for its time.
local function put_with(with, at, to, key, reply_to)
  local op, deadline = groups[at + 1], deadlines[groups[at + 3]]
  local words = {'op', op, 'request', key, 'from', sender, 'reply_to', reply_to, 'deadline', deadline, 'body',
    groups[at + 4], unpack(further)}
  local id = place(option, with, op, key, to, words, deadline, reply_to)
  if type(id) == 'table' then return with.due and id or error(id.err) end
  accepted = accepted + 1
  return id or '@' .. key
end

local function put(at, to, key, reply_to, ...)
  local op, ttl = groups[at + 1], groups[at + 3]
  local with = options[ttl]
  if with then return put_with(with, at, to, key, reply_to) end
  accepted = accepted + 1
  local id = append('mesh:requests:' .. to, 'op', op, 'request', key, 'from', sender,
    'reply_to', reply_to, 'deadline', deadlines[ttl], 'body', groups[at + 4], ...)
  if type(id) == 'table' then error(id.err) end
  return id
end

-- Puts a request on its stream, or lets its caller have the answer to an earlier one. Returns the id of the one that is
-- answered; "" if it is over.
local function put_or_join(at, to, key, reply_to)
  local with = options[groups[at + 3]]
  local known = with and with.known
  if not known then
    if further == no_fields then return put(at, to, key, reply_to) end
    return put(at, to, key, reply_to, unpack(further))
  end
  local op = groups[at + 1]
  if known.state == 'open' then
    once.wait(op, with.once, key, deadlines[groups[at + 3]], reply_to)
    return known.id
  end
  if reply_to ~= '' then once.repeat_answer(op, with.once, key, reply_to) end
  return ''
end

local function put_everywhere(at, to, key)
  local ids = {}
  for _, each in ipairs(all(to)) do ids[each] = put(at, each, key .. '.' .. each, reply_to, unpack(further)) end
  return ids
end

local function put_all(first, last)
  local ids = {}
  for at = first, last, WORDS do
    local to, key = groups[at], groups[at + 2]
    if not live[to] and is_gather(to) then
      ids[#ids + 1] = put_everywhere(at, to, key)
      ids[#ids + 1] = left_out
    else
      ids[#ids + 1] = put_or_join(at, to, key, reply_to)
    end
  end
  return ids
end

local function forbidden(failed) return {error = 'forbidden', about = failed.err} end

-- Lets a request that nobody waits for wait until it is due. Its address needs no replica until then.
local function put_later(at, most, due, limit)
  if memory_is_full then return {error = 'full', about = ''} end
  if waiting_are_full(most) then return {error = 'too-many', about = ''} end
  local words = {'op', groups[at + 1], 'request', groups[at + 2], 'from', sender, 'reply_to', '', 'body', groups[at + 4], 'ttl', '0',
    unpack(further)}
  local failed = delay(groups[at + 2], groups[at], due, limit, words)
  if type(failed) == 'table' then return forbidden(failed) end
  accepted = accepted + 1
  return {''}
end

-- Sends a request that nobody waits for.
local function send(at)
  local most, due, limit = string.match(groups[at + 3], '^(%d+) (%+?%d+) ?(.*)$')
  if due then return put_later(at, most, due, limit) end
  local code, about = refused(at, at, false)
  if code then return {error = code, about = about} end
  local id = put_or_join(at, groups[at], groups[at + 2], '')
  return type(id) == 'table' and forbidden(id) or {id}
end

-- Puts a group of requests whose replies somebody waits for on their streams.
local function submit(first, last, only_reads)
  local code, about = refused(first, last, only_reads)
  if code then return {error = code, about = about} end
  return put_all(first, last)
end

local results, head, total = {}, 1, #groups
while head <= total do
  local last, number = head + groups[head] - 1, groups[head + 1]
  further = further_fields(groups[head + 2])
  results[#results + 1] = number == 0 and send(head + FIRST) or submit(head + FIRST, last, number < 0)
  head = last + 1
end
if accepted > 0 then redis.call('HINCRBY', books_key, 'accepted', accepted) end
local result = cjson.encode(results)
redis.call('SET', submitted_key, batch .. result, 'PX', remembered_ms)
return result
