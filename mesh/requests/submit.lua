#!lua
-- Puts groups of requests on their streams: of a group all requests, or none if one of them has no live replica or a
-- full queue.
-- There are three of this script. When memory is full, or a batch would exceed it, the server or room.lua refuses this one.
-- Then the second one, with `allow-oom`, submits the groups that only read, and refuses the rest. The third one lacks
-- submit_seldom.lua. It runs for batches of calls without options, because Lua's collector walks through all functions that
-- the server has loaded, again and again.
-- KEYS: lease (of a client: its presence), books, submitted
-- ARGV: holder, how long to remember the batch (ms), databases, bound of a stream, sender, reply stream,
--       requests a replica works on at once, number of the batch, and the groups, as batch.lua reads
--       them. The words of a group: the number of its requests, further fields of all its entries ("name value name value", or ""), and of each
--       request: to (class, "db<n>", "*": every live database, or "* <filter> <hash> <hash> ...": those of them that
--       may have something, see filters.py), op, key, ttl (ms, 0: never), body.
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
-- How many words a request has, and the first byte of the address of a gather: "*".
local WORDS, GATHER = 5, 42
local memory_is_full = false

local held, before, clock = unpack(redis.call('MGET', lease_key, submitted_key, 'mesh:clock'))
-- A missing lease may come back: after the server was emptied, the next renewal decides.
if not held then return redis.error_reply('LEASEGONE there is no lease at the moment') end
if held ~= holder then return redis.error_reply('LEASELOST another replica holds the lease') end
if before and string.sub(before, 1, #batch) == batch then return string.sub(before, #batch + 1) end

local PLACE = 9
--[[ batch.lua ]]

-- The words of all groups. The requests of a group begin FIRST words after its own beginning.
local FIRST = 3
local groups, stored = words, #words

--[[ room.lua ]]

-- The rows of the roster are read only as far as they are needed, and each of them once.
local classes = {}
local function class_of(n)
  if classes[n] == nil then classes[n] = redis.call('HGET', 'mesh:replica:' .. n, 'class') end
  return classes[n]
end

-- Returns why an address has no live replica: 'missing' if one is expected back, or else 'no-replica'; nothing if it has one.
local live = {}
local function absence_of(to)
  if live[to] then return end
  local n = tonumber(string.match(to, '^db(%d+)$'))
  if n then live[to] = class_of(n) ~= false end
  -- Database 0 is leased last, so it is looked up last.
  for k = 1, n and 0 or databases do
    if class_of(k % databases) == to then
      live[to] = true
      break
    end
  end
  if live[to] then return end
  for k = n or 0, n or databases - 1 do
    local expected = redis.call('GET', 'mesh:expected:' .. k)
    if expected and (n or expected == to) then return 'missing' end
  end
  return 'no-replica'
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

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

-- The functions that few batches need are created together when the first of them is needed; see commit.lua.
local seldom

-- By the word of a ttl: the deadline, and the options that follow it.
local deadlines, options = {['0'] = '0'}, {}

-- Returns why a group of requests is refused, as a code and what that is about; nothing if it can be submitted.
local function refused(first, last, only_reads)
  for at = first, last, WORDS do
    local to, ttl, code, about = groups[at], groups[at + 3], nil, nil
    if not deadlines[ttl] then
      local ms = tonumber(ttl) or seldom().read_options(ttl)
      deadlines[ttl] = ms == '0' and '0' or string.format('%.0f', now + ms)
    end
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
    elseif string.byte(to) == GATHER then
      code, about = seldom().gather_refused(to)
      if code then return code, about end
    else
      code = absence_of(to)
      if code then return code, to end
      if is_full(to, with and with.ttl or ttl) then return 'busy', to end
      if with and with.limit then
        code, about = seldom().option().limits().refusal(with.limit, deadlines[ttl], with.most)
        if code then return code, about end
      end
    end
  end
end

local accepted = 0
local function put(at, to, key, reply_to, ...)
  accepted = accepted + 1
  if not stamp then begin_stamps(time, clock) end
  local id = append('mesh:requests:' .. to, 'op', groups[at + 1], 'request', key, 'from', sender,
    'reply_to', reply_to, 'deadline', deadlines[groups[at + 3]], 'body', groups[at + 4], ...)
  if type(id) == 'table' then error(id.err) end
  return id
end

--[[ further_fields.lua ]]

-- The further fields of the entries of the group at hand.
local no_fields = {}
local further
--[[ submit_seldom.lua ]]
local created
function seldom()
  created = created or make_seldom()
  return created
end

local results, head = {}, 1
while head <= stored do
  local first, last, number = head + FIRST, head + groups[head] - 1, groups[head + 1]
  further = groups[head + 2] == '' and no_fields or further_fields(groups[head + 2])
  if number == 0 then
    results[#results + 1] = seldom().send(first)
  else
    local code, about = refused(first, last, number < 0)
    local ids = code and {error = code, about = about} or {}
    for at = first, code and 0 or last, WORDS do
      local to, key = groups[at], groups[at + 2]
      if options[groups[at + 3]] or (not live[to] and string.byte(to) == GATHER) then
        seldom().put(ids, at, to, key)
      else
        ids[#ids + 1] = put(at, to, key, reply_to, unpack(further))
      end
    end
    results[#results + 1] = ids
  end
  head = last + 1
end
if accepted > 0 then redis.call('HINCRBY', books_key, 'accepted', accepted) end
local result = cjson.encode(results)
redis.call('SET', submitted_key, batch .. result, 'PX', remembered_ms)
return result
