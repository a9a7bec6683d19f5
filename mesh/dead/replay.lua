-- Puts dead letters back on the streams that they came from, all letters of a call in one step. The same step deletes them
-- from the dead letters. So of two equal calls the later one finds its letters gone, such as a call that is sent again.
-- A request comes back without its deadline, which has passed, and without its reply stream, because its caller no longer
-- waits. A request with an idempotency key takes this key again, so a later call with the key gets its answer.
-- An event comes back with the fields that it had. A stream of events has one consumer group, so the group that gave the
-- event up gets it again.
-- Like every script that adds work, this one does not run when memory is full.
-- KEYS: dead letters, books, audit log
-- ARGV: 1 to 6 as walk.lua says, 7 most requests on a stream, 8 actor, 9 address of the actor, 10 most entries of the audit
--       log, then ids of letters
-- Returns {number of letters replayed, number of named letters that were gone, id to go on after or "", why it stopped
--       or ""}
local dead_key, books_key, audit_key = KEYS[1], KEYS[2], KEYS[3]
local bound = tonumber(ARGV[7])

--[[ letter.lua ]]
--[[ walk.lua ]]
--[[ record.lua ]]
-- Returns the fields of the new entry of a request. bury.lua keeps at most 4000 words of an entry, and Lua's `unpack` can
-- pass so many.
-- `first` is the position of the first field that is not the letter's own.
local function request_of(fields, first)
  local words = {}
  for i = first, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'reply_to' then value = '' elseif name == 'deadline' then value = '0' end
    -- The field `limit` names the place in a lane that the request had until it was given up. The replica that reads the
    -- request gets a new place for it.
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
-- A request is not replayed if a later request has used its idempotency key.
local options = make_options()
-- Returns why the request `id` is not replayed; nothing if it may be.
local function later_one(id, about)
  if about.once and about.op and options.once.find(about.op, about.once) then
    return id .. ' has the idempotency key ' .. about.once .. ', which a later request has used'
  end
end

local function take_key(about, stream, id)
  if not (about.once and about.op) then return end
  options.once.open(about.op, about.once, about.sha or '', about.request or '', stream, id, about.keep)
  -- The request counts as sent, so no caller waits: it has no name, no deadline and no stream.
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
-- The books count each replayed request as accepted once more. They still count it as dead, because it was given up before.
if requests > 0 then redis.call('HINCRBY', books_key, 'accepted', requests) end
if replayed + gone > 0 or wrong ~= '' then
  record(8, 'dead letters replayed', ids, replayed .. ' replayed, ' .. gone .. ' gone', wrong)
end
return {replayed, gone, after, wrong}
