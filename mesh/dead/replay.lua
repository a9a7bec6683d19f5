-- Puts dead letters back on the streams that they came from, all letters of a call in one step. The same step deletes them
-- from the dead letters. So of two equal calls the later one finds its letters gone, such as a call that is sent again.
-- A request comes back without its deadline, which has passed, and without its reply stream, because its caller no longer
-- waits. A request with an idempotency key takes this key again, so a later call with the key gets its answer.
-- An event comes back with the fields that it had. A stream of events has one consumer group, so the group that gave the
-- event up gets it again.
-- Like every script that adds work, this one does not run when memory is full.
-- KEYS: dead letters, books, audit log
-- ARGV: 1 to 6 as walk.lua says, 7 maximum length of a stream, 8 actor, 9 address of the actor, 10 maximum length of the
--       audit log, then ids of letters
-- Returns {number of letters replayed, number of named letters that were gone, id to go on after or "", why it stopped
--       or ""}
local dead_key, books_key, audit_key = KEYS[1], KEYS[2], KEYS[3]
local most_on_stream = tonumber(ARGV[7])

-- This part defines `parse_letter`.
--[[ letter.lua ]]
-- This part defines `walk`.
--[[ walk.lua ]]
-- This part defines `record`.
--[[ record.lua ]]
-- Returns the fields of the new entry of a request, as XADD takes them. requests/bury.lua keeps at most 4000 words of an
-- entry. Lua's `unpack` can pass them all: it fails only at about 8000.
-- `first_other` is the position in `flat` of the first field that is not the letter's own.
local function words_of_request(flat, first_other)
  local words = {}
  for i = first_other, #flat, 2 do
    local name, value = flat[i], flat[i + 1]
    if name == 'reply_to' then value = '' elseif name == 'deadline' then value = '0' end
    -- The field `limit` names the place in a lane that the request had until it was given up. The replica that reads the
    -- request gets a new place for it.
    if name ~= 'limit' then words[#words + 1], words[#words + 2] = name, value end
  end
  return words
end

-- Returns the fields of the new entry of an event. If the event had other fields than `body`, the letter has all of them as
-- one JSON object (`encoded`, see events/bury.lua). They are sorted, because the order of `pairs` is not fixed.
local function words_of_event(letter, flat, first_other)
  if letter.encoded ~= 'fields' then return {unpack(flat, first_other)} end
  local names, words, values = {}, {}, cjson.decode(flat[first_other + 1])
  for name in pairs(values) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    words[#words + 1] = name
    words[#words + 1] = values[name]
  end
  return words
end

-- This part defines `append`.
--[[ ../requests/append.lua ]]

-- This part defines `make_options`.
--[[ ../requests/options.lua ]]
local options = make_options()
-- Returns why the request of the letter `id` is not replayed: a later request has used its idempotency key. Returns nothing
-- if it may be replayed. `flat` has the fields of a letter in turn, and `fields` has them by name.
local function refusal_for_key(id, fields)
  if fields.once and fields.op and options.once.find(fields.op, fields.once) then
    return id .. ' has the idempotency key ' .. fields.once .. ', which a later request has used'
  end
end

-- Lets the replayed request, the entry `id` of a stream, hold its idempotency key if it has one.
local function hold_key(fields, stream, id)
  if not (fields.once and fields.op) then return end
  options.once.open(fields.op, fields.once, fields.sha or '', fields.request or '', stream, id, fields.keep)
  -- The entry of a waiter with no name, no deadline ('0') and no stream: the request counts as sent, and no caller waits.
  options.once.wait(fields.op, fields.once, '', '0', '')
end

local stream_lengths, request_count, replayed_ids = {}, 0, {}
local function replay(id, flat)
  local letter, first_other = parse_letter(flat)
  local fields = options.named(flat)
  local stream, is_request = letter.stream or '', letter.kind == 'request'
  local prefix = is_request and 'mesh:requests:' or 'events:'
  if string.sub(stream, 1, #prefix) ~= prefix then return id .. ' is of no stream that can be replayed to' end
  if is_request then
    local refusal = refusal_for_key(id, fields)
    if refusal then return refusal end
    -- A table is the error of Redis, for example because the stream's key holds another type.
    local length = stream_lengths[stream] or redis.pcall('XLEN', stream)
    if type(length) == 'table' then return stream .. ': ' .. tostring(length.err) end
    if length >= most_on_stream then return stream .. ' is full' end
    stream_lengths[stream] = length + 1
  end
  local words = is_request and words_of_request(flat, first_other) or words_of_event(letter, flat, first_other)
  if #words == 0 then return id .. ' has no fields to replay' end
  local new_id = append(stream, unpack(words))
  if type(new_id) == 'table' then return stream .. ': ' .. tostring(new_id.err) end
  redis.call('XDEL', dead_key, id)
  if is_request then
    request_count = request_count + 1
    hold_key(fields, stream, new_id)
  end
  replayed_ids[#replayed_ids + 1] = id
end

-- In ARGV, the ids of named letters begin at 11, and the words for `record` at 8.
local replayed_count, gone_count, after, problem = walk(11, replay)
-- The books count each replayed request as accepted once more. They still count it as dead, because it was given up before.
-- `pcall`: if somebody has overwritten the books, only this count is missing.
if request_count > 0 then redis.pcall('HINCRBY', books_key, 'accepted', request_count) end
if replayed_count + gone_count > 0 or problem ~= '' then
  record(8, 'dead letters replayed', replayed_ids, replayed_count .. ' replayed, ' .. gone_count .. ' gone', problem)
end
return {replayed_count, gone_count, after, problem}
