#!lua
-- Puts groups of requests on their streams. The script submits all requests of a group or none. It submits none if one of
-- them is refused, for example because its address has no live replica or a full queue.
-- A line such as `[[ batch.lua ]]` in a comment stands for that file: scripts.py puts it there. scripts.py also makes three
-- variants of the script:
--   complete            runs any batch while the server has memory. The server refuses this variant when its memory is full.
--                       room.lua, a part of the script, refuses a batch that would exceed `maxmemory`.
--   for a full memory   gets a batch that was refused because memory is full (`allow-oom`; `memory_is_full` is true). It
--                       submits the groups that only read and those whose idempotency key belongs to an earlier request,
--                       and refuses the others.
--   plain               lacks submit_seldom.lua, for batches of calls without options. Lua's garbage collector walks again
--                       and again through all code that the server has loaded. A server that gets only such batches never
--                       loads the other variants, so the collector takes less time.
-- KEYS: lease (of a client: its presence), books, submitted
-- ARGV: 1 holder, 2 how long to keep the result of the batch (ms), 3 number of databases, 4 maximum length of a stream,
--       5 sender, 6 reply stream, 7 how many requests a replica works on at once, 8 number of the batch, 9 the words of all
--       groups, as batch.lua reads them. The first word of a group is the number of its words. The others are:
--   number of requests       negative if all requests of the group only read; 0 for one request that nobody waits for
--   further fields           such as `call` and `traceparent`, for all entries of the group, in one word: see
--                            further_fields.lua
--   to, op, name, ttl, body   of each request; the sender chooses the name, which is the field `request` of its entry
-- The address `to` is a class, "db<n>", "*" (every live database) or "* <filter> <number> <number> ...". The last form means
-- the live databases whose filter of this name shows that they may have one of several things. Each thing is a pair of
-- numbers, which give its two bits in a filter: see filters.py.
-- The ttl of a call is the time until its deadline (ms), or 0 for no deadline. A request that nobody waits for has no
-- deadline; its ttl says when it begins:
--   "0"                                       it begins at once
--   "<most waiting requests> <due>"           it begins when it is due: at "<ms>" (Unix time), or "+<ms>" from now
--   "<most waiting requests> <due> <limit>"   it has a limit, too
-- A request with options is a group of its own. Its options follow the ttl as JSON, such as "5000 {...}":
--   once, sha, keep   idempotency key, SHA-1 of the body, how long (ms) the answer is kept
--   limit, most       limit as limits.lua reads it, and how many requests may wait in all
--   due, most         due time, and how many requests may wait in all. A request with a due time and an idempotency key has
--                     these in place of the forms above, and nobody waits for it.
-- Returns a JSON list with one item per group:
--   [id, ...]                         the ids of its entries
--   [{"db<n>": id, ...}, [n, ...] ]   of a gather: the ids by database, and the databases that hold data and are left out
--   [""]                              of a request that has no entry: it waits until it is due, or its answer was stored
--                                     before and is on its way
--   {"error": code, "about": what}    of a group that is refused; `refusal` of refusals.py makes the caller's error of it
-- A call whose idempotency key belongs to an earlier request has the id of that request. A call that has to wait for its
-- limit has no entry yet: "@" and its name stand in place of the id.
local lease_key, books_key, submitted_key = KEYS[1], KEYS[2], KEYS[3]
-- `databases` is their number, and `most_at_once` is how many requests one replica works on. `batch` is the number of the
-- batch, with a blank after it. `held` is what the lease says now; `before` is the number and the result of the latest batch.
local holder, remembered_ms, databases, most_on_stream = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local sender, reply_to, most_at_once, batch = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8] .. ' '
-- REQUEST_WORDS is the number of words of a request. GATHER is the first byte of the address of a gather, which is "*".
local REQUEST_WORDS, GATHER = 5, 42
-- scripts.py writes true here in the variant for a full memory.
local memory_is_full = false

local held, before, clock = unpack(redis.call('MGET', lease_key, submitted_key, 'mesh:clock'))
-- A missing lease is not always lost: if the server was emptied, the next renewal may restore the lease.
if not held then return redis.error_reply('LEASEGONE there is no lease at the moment') end
if held ~= holder then return redis.error_reply('LEASELOST another replica holds the lease') end
-- If this batch was submitted before, only its answer was lost on the way: return the stored answer.
if before and string.sub(before, 1, #batch) == batch then return string.sub(before, #batch + 1) end
-- A batch with a lower number than the latest one comes late, over a connection that its sender has closed. It was sent again
-- over another connection, and applied.
if before and tonumber(ARGV[8]) < (tonumber(string.match(before, '^(%d+) %[')) or 0) then
  return redis.error_reply('ERR this batch comes late: a later one was applied')
end

-- The number of the argument that has the batch, for batch.lua, which reads it into `words`.
local BATCH_ARGUMENT = 9
-- This part defines `words` and `bytes`.
--[[ batch.lua ]]

-- `request_words` is one flat list with the words of all groups, and `words_to_store` is their number, because all of them
-- count for room.lua. A group begins with HEAD_WORDS words; its requests follow. A request has five words, from position `at`
-- on: its address, its operation, its name, its ttl (perhaps with options), and its body.
local HEAD_WORDS = 3
local request_words, words_to_store = words, #words

--[[ room.lua ]]

-- This part defines `read_error`.
--[[ read_error.lua ]]

-- By database: its class, or false if it is not live. A row of the roster is read when it is first needed, and only once. A
-- row that somebody has overwritten counts as absent, until its replica writes it again (renew.lua). If this sender may not
-- read the row, the script ends.
local classes = {}
local function class_of(n)
  if classes[n] == nil then
    local row = redis.pcall('HMGET', 'mesh:replica:' .. n, 'class')
    local code, about = read_error(row)
    if code == 'forbidden' then error(about) end
    classes[n] = row[1] or false
  end
  return classes[n]
end

-- By address: true if it has a live replica. Without true, `absence_of` looks again.
local live = {}
-- Returns why an address has no live replica: 'missing' if one is expected back, or else 'no-replica'. Returns nothing if
-- the address has a live replica.
local function absence_of(to)
  if live[to] then return end
  local n = tonumber(string.match(to, '^db(%d+)$'))
  if n then live[to] = class_of(n) ~= false end
  -- Looks for a live database of the class `to`; if the address is a database, the loop does not run. Database 0 is leased
  -- last, so it is looked up last.
  for k = 1, n and 0 or databases do
    if class_of(k % databases) == to then
      live[to] = true
      break
    end
  end
  if live[to] then return end
  -- The database itself, or every database that may be of the class.
  for k = n or 0, n or databases - 1 do
    local expected = redis.call('GET', 'mesh:expected:' .. k)
    if expected and (n or expected == to) then return 'missing' end
  end
  return 'no-replica'
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Returns how long (ms) the next unread request of a class has waited. Returns 0 while the replicas of the class work on
-- less than half of the requests that they can work on at once. Then a wait does not show that they have too much work:
-- they have room for more, or they do not run. `group_facts` is about the consumer group of the stream.
local function queue_wait_ms(class)
  local stream = 'mesh:requests:' .. class
  -- XINFO fails if there is no stream yet, or if somebody has overwritten its key. Then nothing waits.
  local answer, group_facts = redis.pcall('XINFO', 'GROUPS', stream), {}
  local flat = not answer.err and answer[1] or {}
  for i = 1, #flat, 2 do group_facts[flat[i]] = flat[i + 1] end
  local last_delivered, replica_count = group_facts['last-delivered-id'], 0
  -- A live class has at least one replica. If that one alone would have room, the replicas need not be counted.
  if not last_delivered or group_facts.pending < most_at_once / 2 then return 0 end
  local next_entry = redis.call('XRANGE', stream, '(' .. last_delivered, '+', 'COUNT', 1)[1]
  if not next_entry then return 0 end
  for n = 0, databases - 1 do
    if class_of(n) == class then replica_count = replica_count + 1 end
  end
  if group_facts.pending < replica_count * most_at_once / 2 then return 0 end
  return now - tonumber(string.match(next_entry[1], '^%d+'))
end

-- Returns why a queue takes no further request with this ttl: a code, and what the code is about. Returns nothing if the queue
-- takes the request. A queue takes none if it is full, or if somebody has overwritten the key of its stream. A refusal is for
-- one group; an error would end the script, after other groups are on their streams.
-- The queue of a class is full when its next unread request has waited for more than a tenth of the ttl. This leaves time:
-- while a queue grows, each request waits longer than the one before it. A request that begins just before its deadline is not
-- finished in time. The stream of a database has one worker, so only its length is bounded.
--
-- By address: `queue_lengths` has the number of entries on the stream, with those of this batch, and `queue_waits_ms` what
-- `queue_wait_ms` says. The lengths also count requests whose group is refused afterwards. So a queue may count as full too
-- early in a batch, but never too late.
local queue_lengths, queue_waits_ms = {}, {}
local function refused_by_queue(to, ttl)
  local length = queue_lengths[to] or redis.pcall('XLEN', 'mesh:requests:' .. to)
  local code, about = read_error(length, 'mesh:requests:' .. to)
  if code == 'forbidden' then error(about) end
  if code then return code, about end
  length = length + 1
  queue_lengths[to] = length
  if length > most_on_stream then return 'busy', to end
  -- Without a deadline a request may wait as long as it must, and an only request waits for no other.
  if ttl == '0' or length == 1 then return end
  if not queue_waits_ms[to] then queue_waits_ms[to] = string.sub(to, 1, 2) == 'db' and 0 or queue_wait_ms(to) end
  if queue_waits_ms[to] > 0 and queue_waits_ms[to] > ttl / 10 then return 'busy', to end
end

-- This part defines `append`.
--[[ append.lua ]]

-- The functions that few batches need are created together, when one of them is needed for the first time: see commit.lua.
local seldom

-- Two tables by the fourth word of a request (`ttl_and_options`), which is a ttl, perhaps with options after it. `deadlines`
-- has the deadline, and `options` the options; `with` are those of one request. `read_options` adds the options, and returns
-- the ttl (ms) as text. `seldom().option_functions()` is none of these: it returns the functions of options.lua.
local deadlines, options = {['0'] = '0'}, {}

-- Returns why a group of requests is refused: a code, and what the code is about. Returns nothing if it can be submitted.
-- Its requests are at request_words[first] to request_words[last]. `only_reads` says that they store nothing, so that they
-- are accepted when memory is full.
local function refused(first, last, only_reads)
  for at = first, last, REQUEST_WORDS do
    local to, ttl_and_options, code, about = request_words[at], request_words[at + 3], nil, nil
    if not deadlines[ttl_and_options] then
      local ttl_ms = tonumber(ttl_and_options) or seldom().read_options(ttl_and_options)
      deadlines[ttl_and_options] = ttl_ms == '0' and '0' or string.format('%.0f', now + ttl_ms)
    end
    local with = options[ttl_and_options]
    if with and with.once then
      -- `known` is the earlier request with the idempotency key, or nil. Two requests with the same ttl and options share one
      -- table `with`, even if they call different operations. So `known` is set anew for each request.
      with.known, code, about = seldom().option_functions().once.check(request_words[at + 1], with.once, with.sha)
      if code or with.known then return code, about end
    end
    if memory_is_full and not only_reads then return 'full', '' end
    -- The most frequent case comes first.
    if live[to] and not with then
      code, about = refused_by_queue(to, ttl_and_options)
      if code then return code, about end
    elseif with and with.due then
      -- The address needs no live replica until the request is due.
      code, about = seldom().refused_by_later(with.most)
      if code then return code, about end
    elseif string.byte(to) == GATHER then
      code, about = seldom().gather_refused(to)
      if code then return code, about end
    else
      code = absence_of(to)
      if code then return code, to end
      code, about = refused_by_queue(to, with and with.ttl or ttl_and_options)
      if code then return code, about end
      if with and with.limit then
        code, about = seldom().option_functions().limits().refusal(with.limit, deadlines[ttl_and_options], with.most)
        if code then return code, about end
      end
    end
  end
end

-- Appends the request whose words begin at request_words[at] to its stream, with further fields. `seldom().put` is for gathers
-- and for requests with options. `append` fails only if the last id of the stream is the highest possible one, or if the server
-- denies access. The error ends the script, and the groups before it stay on their streams.
local accepted = 0
local function put(at, to, request_name, reply_to, ...)
  accepted = accepted + 1
  -- Sets `stamp` of append.lua, the time of all ids. `append` itself would need two more commands for it: `time` and `clock`
  -- are known here.
  if not stamp then begin_stamps(time, clock) end
  local id = append('mesh:requests:' .. to, 'op', request_words[at + 1], 'request', request_name, 'from', sender,
    'reply_to', reply_to, 'deadline', deadlines[request_words[at + 3]], 'body', request_words[at + 4], ...)
  if type(id) == 'table' then error(id.err) end
  return id
end

-- This part defines `further_fields`.
--[[ further_fields.lua ]]

-- The further fields of all entries of the present group: a list of names and values.
local no_fields = {}
local further
--[[ submit_seldom.lua ]]
local seldom_functions
function seldom()
  seldom_functions = seldom_functions or make_seldom()
  return seldom_functions
end

-- `head` is the position of the first word of the present group. `first` and `last` are those of its requests' words.
local results, head = {}, 1
while head <= words_to_store do
  local first, last, request_count = head + HEAD_WORDS, head + request_words[head] - 1, request_words[head + 1]
  further = request_words[head + 2] == '' and no_fields or further_fields(request_words[head + 2])
  if request_count == 0 then
    results[#results + 1] = seldom().send(first)
  else
    local code, about = refused(first, last, request_count < 0)
    local item = code and {error = code, about = about} or {}
    -- If the group is refused, the loop ends at 0, before it begins.
    for at = first, code and 0 or last, REQUEST_WORDS do
      local to, request_name = request_words[at], request_words[at + 2]
      -- A live address is no gather. This test comes first, because it is quicker than the other one.
      if options[request_words[at + 3]] or (not live[to] and string.byte(to) == GATHER) then
        seldom().put(item, at, to, request_name)
      else
        item[#item + 1] = put(at, to, request_name, reply_to, unpack(further))
      end
    end
    results[#results + 1] = item
  end
  head = last + 1
end
-- The requests are on their streams by now. So an error at the books, whose key may have another type, must not end the script.
if accepted > 0 then redis.pcall('HINCRBY', books_key, 'accepted', accepted) end
local result = cjson.encode(results)
redis.call('SET', submitted_key, batch .. result, 'PX', remembered_ms)
return result
