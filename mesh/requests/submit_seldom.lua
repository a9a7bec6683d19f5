-- What few batches need. A part of submit.lua that its plain variant lacks; see `variants` of scripts.py. The list
-- `request_words` of submit.lua has the words of each request; submit.lua says in which order. Nothing is indented, because
-- almost the whole file is the body of this function.
-- It changes these names of submit.lua: `options` (in `read_options`), `classes` and `accepted`. It reads `further`, the
-- further fields of the present group, and calls `class_of`, `refused`, `refused_by_queue` and `put`.
local function make_seldom()
  local seldom = {}

-- Reads a word "<ttl> <options>", and notes the options. Returns the ttl (ms).
function seldom.read_options(word)
  local ttl, json = string.match(word, '^(%d+) (.*)$')
  options[word] = cjson.decode(json)
  options[word].ttl = ttl
  return ttl
end

-- Returns the databases that hold data, as the commits there have noted; see lease/written.lua. Reads them at the first call.
local written
local function written_databases()
  written = written or redis.call('ZRANGEBYSCORE', 'mesh:written', '(' .. now, '+inf')
  return written
end

-- Two lists of the databases that hold data and are not live: those whose holder is expected back, and the others.
local expected, left_out
local function look_for_missing()
  if expected then return end
  expected, left_out = {}, {}
  for _, n in ipairs(written_databases()) do
    -- A member that is no number is not from the mesh.
    if tonumber(n) and not class_of(tonumber(n)) then
      local is_expected = redis.call('EXISTS', 'mesh:expected:' .. n) == 1
      table.insert(is_expected and expected or left_out, n)
    end
  end
end

local function holds_data(n)
  for _, member in ipairs(written_databases()) do
    if tonumber(member) == n then return true end
  end
  return false
end

-- Returns the class of a database and one field of its roster row; nothing if it is not live. All gathers of a batch share
-- `rows`, which has both by field and database, so that a row is read once. Somebody may have overwritten the row with another
-- type. Then `pcall` lets the script go on, and the database counts as not live.
local rows = {}
local function class_and_field(n, field)
  local row = rows[field .. n]
  if not row then
    row = redis.pcall('HMGET', 'mesh:replica:' .. n, 'class', field)
    local code, about = read_error(row)
    if code == 'forbidden' then error(about) end
    rows[field .. n], classes[n] = row, row[1] or false
  end
  return row[1], row[2]
end

-- Returns whether a gather asks a database: it is live, and may have what the gather looks for. A live database without a
-- filter is asked. A database with a filter is asked if its filter has both bits of some pair. The field names the key of the
-- filter and its size: `bit_count`. When a filter is named, one more bit is set, at the offset `bit_count` (see filters.py). A
-- filter without this bit does not count: its key has expired, or somebody has deleted or overwritten it. Then the database
-- is asked if it holds any data. Only the first GETBIT can meet a key of another type, so only this one is a pcall.
local function may_have(n, field, pairs_of_numbers)
  local class, key_and_bit_count = class_and_field(n, field)
  local filter_key, bit_count = string.match(key_and_bit_count or '', '^(%S+) (%d+)$')
  if not class or not filter_key then return class end
  if redis.pcall('GETBIT', filter_key, bit_count) ~= 1 then return holds_data(n) end
  for one, other in string.gmatch(pairs_of_numbers, '(%d+) (%d+)') do
    if redis.call('GETBIT', filter_key, one % bit_count) == 1
      and redis.call('GETBIT', filter_key, other % bit_count) == 1 then
      return true
    end
  end
  return false
end

-- By address of a gather: the addresses of the live databases that the gather asks, as a list such as {"db3", "db5"}.
local asked_by_gather = {}
-- Returns the addresses that a gather asks, and the databases that hold data and whose holder is expected back.
function seldom.asked_and_expected(to)
  if not asked_by_gather[to] then
    asked_by_gather[to] = {}
    local name, pairs_of_numbers = string.match(to, '^%* (%S+) ([%d ]+)$')
    for n = 0, databases - 1 do
      local is_asked
      if name then is_asked = may_have(n, 'filter:' .. name, pairs_of_numbers) else is_asked = class_of(n) end
      if is_asked then table.insert(asked_by_gather[to], 'db' .. n) end
    end
  end
  look_for_missing()
  return asked_by_gather[to], expected
end

-- Returns why a gather is refused: a code, and what the code is about. Returns nothing if it can be submitted.
function seldom.gather_refused(to)
  local asked, expected_back = seldom.asked_and_expected(to)
  if #expected_back > 0 then return 'missing', table.concat(expected_back, ' ') end
  for _, address in ipairs(asked) do
    -- '0' for the ttl: of a database's stream only the length is checked, and not how long its requests wait.
    local code, about = refused_by_queue(address, '0')
    if code then return code, about end
  end
end

-- This part defines `make_options`.
--[[ options.lua ]]
local option_functions
-- Returns the functions of options.lua, and makes them at the first call.
function seldom.option_functions()
  option_functions = option_functions or make_options()
  return option_functions
end

-- This part defines `delay` and `place`.
--[[ place.lua ]]

-- Returns why mesh:later takes no further request: a code, and what the code is about. Returns nothing if it takes one.
-- pcall: if somebody has overwritten mesh:later with another type, only the present group is refused.
function seldom.refused_by_later(most_waiting)
  local waiting_count = redis.pcall('ZCARD', 'mesh:later')
  local code, about = read_error(waiting_count, 'mesh:later')
  if code then return code, about end
  if waiting_count >= tonumber(most_waiting) then return 'too-many', '' end
end

-- Submits a request with options. Returns the id of its entry, or "@" and its name if the request waits. If a request that is
-- due later cannot be stored, returns the error of Redis. A due request comes alone, from `seldom.send`, which makes a refusal
-- of this error. Any other error ends the script, as in `put`: the groups before it stay on their streams.
local function put_with(with, at, to, request_name, reply_to)
  local op, deadline = request_words[at + 1], deadlines[request_words[at + 3]]
  local words = {'op', op, 'request', request_name, 'from', sender, 'reply_to', reply_to, 'deadline', deadline, 'body',
    request_words[at + 4], unpack(further)}
  local id = place(seldom.option_functions(), with, op, request_name, to, words, deadline, reply_to)
  if type(id) == 'table' then return with.due and id or error(id.err) end
  accepted = accepted + 1
  return id or '@' .. request_name
end

-- Submits the requests of a gather. Returns their ids by database, and the databases that hold data and are left out.
local function put_everywhere(at, to, request_name)
  local ids = {}
  for _, address in ipairs(seldom.asked_and_expected(to)) do
    ids[address] = put(at, address, request_name .. '.' .. address, reply_to, unpack(further))
  end
  return ids, left_out
end

-- Submits a request. If an earlier request has the same idempotency key, the caller gets its answer instead. Returns the id
-- of the request whose answer the caller gets; "" if that request is answered already.
local function put_or_join(at, to, request_name, reply_to)
  local op, ttl_and_options = request_words[at + 1], request_words[at + 3]
  local with = options[ttl_and_options]
  if not with then return put(at, to, request_name, reply_to, unpack(further)) end
  if not with.known then return put_with(with, at, to, request_name, reply_to) end
  if with.known.state == 'open' then
    seldom.option_functions().once.wait(op, with.once, request_name, deadlines[ttl_and_options], reply_to)
    return with.known.id
  end
  if reply_to ~= '' then seldom.option_functions().once.repeat_answer(op, with.once, request_name, reply_to) end
  return ''
end

-- Submits a gather, or another request, and adds to `ids` what the script returns for it.
function seldom.put(ids, at, to, request_name)
  if string.byte(to) == GATHER then
    ids[#ids + 1], ids[#ids + 2] = put_everywhere(at, to, request_name)
  else
    ids[#ids + 1] = put_or_join(at, to, request_name, reply_to)
  end
end

-- Returns the item of the result for a request that cannot be stored, because of an error of Redis.
local function forbidden_item(redis_error) return {error = 'forbidden', about = redis_error.err} end

-- Stores a request without a caller until it is due. The address of the request needs no live replica until then. With the
-- ttl '0', the request gets no deadline when it is due (see wake.lua).
local function put_later(at, most_waiting, due, limit)
  if memory_is_full then return {error = 'full', about = ''} end
  local code, about = seldom.refused_by_later(most_waiting)
  if code then return {error = code, about = about} end
  local words = {'op', request_words[at + 1], 'request', request_words[at + 2], 'from', sender, 'reply_to', '',
    'body', request_words[at + 4], 'ttl', '0', unpack(further)}
  local wait_ms_or_error = delay(request_words[at + 2], request_words[at], due, limit, words)
  if type(wait_ms_or_error) == 'table' then return forbidden_item(wait_ms_or_error) end
  accepted = accepted + 1
  return {''}
end

-- Submits a request without a caller, and returns its item of the result. In place of a ttl, the request may have
-- "<most waiting requests> <due>", perhaps with a limit; a "+" before the number of `due` counts it from now.
function seldom.send(at)
  local most_waiting, due, limit = string.match(request_words[at + 3], '^(%d+) (%+?%d+) ?(.*)$')
  if due then return put_later(at, most_waiting, due, limit) end
  -- This group has one request, the one at `at`. False: it does not only read, so it is refused when memory is full.
  local code, about = refused(at, at, false)
  if code then return {error = code, about = about} end
  local id = put_or_join(at, request_words[at], request_words[at + 2], '')
  return type(id) == 'table' and forbidden_item(id) or {id}
end

  return seldom
end
-- End of what few need.
