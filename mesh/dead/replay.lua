-- Puts dead letters back on the streams that they came from, all of a call in one step: each leaves the dead letters in
-- the step that adds it, so a call that is repeated, or that another one overtakes, finds it gone.
-- A request comes back without its deadline, which has passed, and without a stream for its reply: nobody waits any more.
-- With an idempotency key it takes its key again, so a later call with the key gets its answer.
-- An event comes back with the fields that it had. A stream of events has one group, so the one that gave it up gets it.
-- Like every script that adds work, it does not run when memory is full.
-- KEYS: dead letters, books, audit log
-- ARGV: 1 to 6 as walk.lua says, 7 bound of a stream, 8 actor, 9 source, 10 length of the audit log, then ids
-- Returns {number replayed, number gone, where to go on, why it stopped}
local dead_key, books_key, audit_key = KEYS[1], KEYS[2], KEYS[3]
local bound = tonumber(ARGV[7])

--[[ letter.lua ]]
--[[ walk.lua ]]
--[[ record.lua ]]
-- Lua can pass some 8000 words to a function; bury.lua keeps 4000 of an entry.
local function request_of(fields, first)
  local words = {}
  for i = first, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'reply_to' then value = '' elseif name == 'deadline' then value = '0' end
    -- Its former place in its lane was freed when it was given up. The replica that reads the request gets it a new one.
    if name ~= 'limit' then words[#words + 1], words[#words + 2] = name, value end
  end
  return words
end

local function event_of(letter, fields, first)
  if letter.encoded ~= 'fields' then return {unpack(fields, first)} end
  local names, words, values = {}, {}, cjson.decode(fields[first + 1])
  for name in pairs(values) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    words[#words + 1] = name
    words[#words + 1] = values[name]
  end
  return words
end

--[[ ../requests/append.lua ]]

--[[ ../requests/options.lua ]]
-- A request takes its idempotency key again. It is not replayed if a later request has used the key.
local options = make_options()
local function later_one(id, about)
  if about.once and about.op and options.once.find(about.op, about.once) then
    return id .. ' has the idempotency key ' .. about.once .. ', which a later request has used'
  end
end

local function take_key(about, stream, id)
  if not (about.once and about.op) then return end
  options.once.open(about.op, about.once, about.sha or '', about.request or '', stream, id, about.keep)
  options.once.wait(about.op, about.once, '', '0', '')
end

local lengths, requests, ids = {}, 0, {}
local function replay(id, fields)
  local letter, first = parse(fields)
  local about = options.named(fields)
  local stream, is_request = letter.stream or '', letter.kind == 'request'
  local prefix = is_request and 'mesh:requests:' or 'events:'
  if string.sub(stream, 1, #prefix) ~= prefix then return id .. ' is of no stream that can be replayed to' end
  if is_request then
    local taken = later_one(id, about)
    if taken then return taken end
    lengths[stream] = lengths[stream] or redis.call('EXISTS', stream) == 1 and redis.call('XLEN', stream) or 0
    if lengths[stream] >= bound then return stream .. ' is full' end
    lengths[stream] = lengths[stream] + 1
  end
  local words = is_request and request_of(fields, first) or event_of(letter, fields, first)
  if #words == 0 then return id .. ' has no fields to replay' end
  local added = append(stream, unpack(words))
  if type(added) == 'table' then return stream .. ': ' .. tostring(added.err) end
  redis.call('XDEL', dead_key, id)
  if is_request then
    requests = requests + 1
    take_key(about, stream, added)
  end
  ids[#ids + 1] = id
end

local replayed, gone, after, wrong = walk(11, replay)
-- It is accepted once more; that it was given up before stays in the books.
if requests > 0 then redis.call('HINCRBY', books_key, 'accepted', requests) end
if replayed + gone > 0 or wrong ~= '' then
  record(8, 'dead letters replayed', ids, replayed .. ' replayed, ' .. gone .. ' gone', wrong)
end
return {replayed, gone, after, wrong}
