-- What few batches need. A part of submit.lua that its plain variant lacks; see `variants` of scripts.py.
local function make_seldom()
  local seldom = {}

-- Reads a word "<ttl> <options>", and notes the options. Returns the ttl (ms).
function seldom.read_options(word)
  local ttl, json = string.match(word, '^(%d+) (.*)$')
  options[word] = cjson.decode(json)
  options[word].ttl = ttl
  return ttl
end

-- The databases that hold data, as the commits there have noted; see lease/written.lua.
local written
local function holding()
  written = written or redis.call('ZRANGEBYSCORE', 'mesh:written', '(' .. now, '+inf')
  return written
end

-- Two lists of the databases that hold data and are not live: those whose holder is expected back, and the others.
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

local function holds_data(n)
  for _, each in ipairs(holding()) do
    if tonumber(each) == n then return true end
  end
  return false
end

-- By roster field and database: the class of the database and the value of the field, both from its roster row. All gathers
-- of a batch share these, so that a row is read once.
local rows = {}
local function row_of(n, field)
  local row = rows[field .. n]
  if not row then
    row = redis.pcall('HMGET', 'mesh:replica:' .. n, 'class', field)
    rows[field .. n], classes[n] = row, row[1] or false
  end
  return row[1], row[2]
end

-- Returns whether a gather asks a database: it is live, and may have what the gather looks for. A live database without a
-- filter is asked. A database is not asked if its filter lacks at least one bit of each pair. A filter without its last bit
-- does not count, because its key has ended or somebody has deleted it. Then the database is asked if it holds any data.
local function may_have(n, field, pairs_of_bits)
  local class, named = row_of(n, field)
  local key, bits = string.match(named or '', '^(%S+) (%d+)$')
  if not class or not key then return class end
  if redis.pcall('GETBIT', key, bits) ~= 1 then return holds_data(n) end
  for one, other in string.gmatch(pairs_of_bits, '(%d+) (%d+)') do
    if redis.call('GETBIT', key, one % bits) == 1 and redis.call('GETBIT', key, other % bits) == 1 then return true end
  end
  return false
end

-- By address of a gather: the live databases that the gather asks, as a list such as {"db3", "db5"}.
local asked = {}
-- Returns the live databases that a gather asks, and the databases that hold data and whose holder is expected back.
function seldom.all(to)
  if not asked[to] then
    asked[to] = {}
    local name, pairs_of_bits = string.match(to, '^%* (%S+) ([%d ]+)$')
    for n = 0, databases - 1 do
      local is_asked
      if name then is_asked = may_have(n, 'filter:' .. name, pairs_of_bits) else is_asked = class_of(n) end
      if is_asked then table.insert(asked[to], 'db' .. n) end
    end
  end
  look_for_missing()
  return asked[to], expected
end

-- Returns why a gather is refused: a code, and what the code is about. Returns nothing if it can be submitted.
function seldom.gather_refused(to)
  local every, expected = seldom.all(to)
  if #expected > 0 then return 'missing', table.concat(expected, ' ') end
  for _, each in ipairs(every) do
    local code, about = refused_by_queue(each, '0')
    if code then return code, about end
  end
end

--[[ options.lua ]]
local option
function seldom.option()
  option = option or make_options()
  return option
end

--[[ place.lua ]]

-- Returns why mesh:later takes no further request: a code, and what the code is about. Returns nothing if it takes one.
function seldom.refused_by_later(most)
  local number = redis.pcall('ZCARD', 'mesh:later')
  if type(number) == 'table' then return 'wrong-type', 'mesh:later' end
  if number >= tonumber(most) then return 'too-many', '' end
end

-- Submits a request with options. Returns the id of its entry; or "@" and its name if the request waits; or the error of
-- Redis if a request that is due later cannot be stored.
local function put_with(with, at, to, key, reply_to)
  local op, deadline = groups[at + 1], deadlines[groups[at + 3]]
  local words = {'op', op, 'request', key, 'from', sender, 'reply_to', reply_to, 'deadline', deadline, 'body',
    groups[at + 4], unpack(further)}
  local id = place(seldom.option(), with, op, key, to, words, deadline, reply_to)
  if type(id) == 'table' then return with.due and id or error(id.err) end
  accepted = accepted + 1
  return id or '@' .. key
end

-- Submits the requests of a gather. Returns their ids by database, and the databases that hold data and are left out.
local function put_everywhere(at, to, key)
  local ids = {}
  for _, each in ipairs(seldom.all(to)) do ids[each] = put(at, each, key .. '.' .. each, reply_to, unpack(further)) end
  return ids, left_out
end

-- Submits a request. If an earlier request has the same idempotency key, the caller gets its answer instead. Returns the id
-- of the request whose answer the caller gets; "" if that request is answered already.
local function put_or_join(at, to, key, reply_to)
  local op, ttl = groups[at + 1], groups[at + 3]
  local with = options[ttl]
  if not with then return put(at, to, key, reply_to, unpack(further)) end
  if not with.known then return put_with(with, at, to, key, reply_to) end
  if with.known.state == 'open' then
    seldom.option().once.wait(op, with.once, key, deadlines[ttl], reply_to)
    return with.known.id
  end
  if reply_to ~= '' then seldom.option().once.repeat_answer(op, with.once, key, reply_to) end
  return ''
end

-- Submits a gather, or another request, and adds to `ids` what the script returns for it.
function seldom.put(ids, at, to, key)
  if string.byte(to) == GATHER then
    ids[#ids + 1], ids[#ids + 2] = put_everywhere(at, to, key)
  else
    ids[#ids + 1] = put_or_join(at, to, key, reply_to)
  end
end

local function forbidden(failed) return {error = 'forbidden', about = failed.err} end

-- Stores a request without a caller until it is due. The address of the request needs no live replica until then.
local function put_later(at, most, due, limit)
  if memory_is_full then return {error = 'full', about = ''} end
  local code, about = seldom.refused_by_later(most)
  if code then return {error = code, about = about} end
  local words = {'op', groups[at + 1], 'request', groups[at + 2], 'from', sender, 'reply_to', '', 'body', groups[at + 4], 'ttl', '0',
    unpack(further)}
  local failed = delay(groups[at + 2], groups[at], due, limit, words)
  if type(failed) == 'table' then return forbidden(failed) end
  accepted = accepted + 1
  return {''}
end

-- Submits a request without a caller, and returns its item of the result.
function seldom.send(at)
  local most, due, limit = string.match(groups[at + 3], '^(%d+) (%+?%d+) ?(.*)$')
  if due then return put_later(at, most, due, limit) end
  local code, about = refused(at, at, false)
  if code then return {error = code, about = about} end
  local id = put_or_join(at, groups[at], groups[at + 2], '')
  return type(id) == 'table' and forbidden(id) or {id}
end

  return seldom
end
-- End of what few need.
