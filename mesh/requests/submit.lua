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

local held, before, clock = unpack(redis.call('MGET', lease_key, submitted_key, 'mesh:clock'))
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

--[[ further_fields.lua ]]

-- The functions that few batches need are created together when the first of them is needed; see commit.lua.
local seldom

-- By the word of a ttl: the deadline, and the options that follow it.
local deadlines, options = {['0'] = '0'}, {}
local function read_ttl(word)
  local ttl, json = string.match(word, '^(%d+) (.*)$')
  if json then
    options[word] = cjson.decode(json)
    options[word].ttl = ttl
  end
  ttl = ttl or word
  deadlines[word] = ttl == '0' and '0' or string.format('%.0f', now + ttl)
end

-- Returns why a group of requests is refused, as a code and what that is about; nothing if it can be submitted.
local function refused(first, last, only_reads)
  for at = first, last, WORDS do
    local to, ttl, code, about = groups[at], groups[at + 3], nil, nil
    if not deadlines[ttl] then read_ttl(ttl) end
    local with = options[ttl]
    if with and with.once then
      -- Calls of several operations share `with` if their words are the same.
      with.known, code, about = seldom().option().once.check(groups[at + 1], with.once, with.sha)
      if code or with.known then return code, about end
    end
    if memory_is_full and not only_reads then return 'full', '' end
    if live[to] and not with then
      if is_full(to, ttl) then return 'busy', to end
    elseif with and with.due then
      -- Its address needs no replica until it is due.
      if seldom().waiting_are_full(with.most) then return 'too-many', '' end
    elseif not is_gather(to) then
      if not is_live(to) then return seldom().is_expected(to) and 'missing' or 'no-replica', to end
      if is_full(to, with and with.ttl or ttl) then return 'busy', to end
      if with and with.limit then
        code, about = seldom().option().limits().refusal(with.limit, deadlines[ttl], with.most)
        if code then return code, about end
      end
    else
      local every, expected = seldom().all(to)
      if #expected > 0 then return 'missing', table.concat(expected, ' ') end
      for _, each in ipairs(every) do
        if is_full(each, '0') then return 'busy', each end
      end
    end
  end
end

local accepted, further = 0, nil
local function put(at, to, key, reply_to, ...)
  local op, ttl = groups[at + 1], groups[at + 3]
  local with = options[ttl]
  if with then return seldom().put_with(with, at, to, key, reply_to) end
  accepted = accepted + 1
  if not stamp then begin_stamps(now, clock) end
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
    seldom().option().once.wait(op, with.once, key, deadlines[groups[at + 3]], reply_to)
    return known.id
  end
  if reply_to ~= '' then seldom().option().once.repeat_answer(op, with.once, key, reply_to) end
  return ''
end

local function put_all(first, last)
  local ids = {}
  for at = first, last, WORDS do
    local to, key = groups[at], groups[at + 2]
    if not live[to] and is_gather(to) then
      ids[#ids + 1], ids[#ids + 2] = seldom().put_everywhere(at, to, key)
    else
      ids[#ids + 1] = put_or_join(at, to, key, reply_to)
    end
  end
  return ids
end

--[[ submit_seldom.lua ]]
local created
function seldom()
  created = created or make_seldom()
  return created
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
  results[#results + 1] = number == 0 and seldom().send(head + FIRST) or submit(head + FIRST, last, number < 0)
  head = last + 1
end
if accepted > 0 then redis.call('HINCRBY', books_key, 'accepted', accepted) end
local result = cjson.encode(results)
redis.call('SET', submitted_key, batch .. result, 'PX', remembered_ms)
return result
