-- What few transactions need. A part of commit.lua that its plain variant lacks; see `variants` of scripts.py.
-- It reads these names of commit.lua: tx and head (see there), bus, database, consumer, selected, `go_to`, `wrong_type`. It
-- changes `accepted` (in `seldom.send`), `expiries` (in `note_expiry`), and what commit_verbs.lua changes.
local function make_seldom()
  local seldom = {}

-- This part defines `append`.
--[[ append.lua ]]

-- This part defines `make_options`.
--[[ options.lua ]]
-- What make_options() returns; nil until a transaction needs it.
local options

-- This part defines `delay` and `place`.
--[[ place.lua ]]

-- This part defines `further_fields`.
--[[ further_fields.lua ]]

--[[ commit_answers.lua ]]

-- The function that commit_answers.lua makes; nil until a transaction needs it.
local is_unchanged
-- Compares the answer of the reading command whose group of expectations begins at tx[i]. commit_answers.lua lists the words
-- from tx[i + 1] on. Returns the position after the group; or nil and the reason, if the answer has changed.
function seldom.unchanged_answer(i)
  is_unchanged = is_unchanged or make_answer_check()
  -- The reason is "conflict <side> <hash> <name>". Here the hash is "", so two blanks follow the side. tx[i + 5] is the key.
  if not is_unchanged(i + 1) then return nil, 'conflict ' .. string.sub(tx[i], 1, 1) .. '  ' .. tx[i + 5] end
  return i + 4 + tx[i + 2] + tx[i + 3]
end

--[[ commit_checks.lua ]]

-- The verb `keep`. Its words are tx[first], the verb itself, and then the key and the moment (ms). Of all moments that the
-- batch names for one key, the latest counts.
local function note_expiry(first)
  local key, until_ms = tx[first + 1], tx[first + 2]
  expiries[selected] = expiries[selected] or {}
  local noted_ms = expiries[selected][key]
  if not noted_ms or tonumber(noted_ms) < tonumber(until_ms) then expiries[selected][key] = until_ms end
end

-- By verb: true if the verb removes data. `seldom.adds` fills it when memory is full. Services add their own verbs to it.
local frees = {}

--[[ commit_verbs.lua ]]

local verbs
-- Returns the functions of our own verbs, by verb.
function seldom.verbs()
  verbs = verbs or make_verbs(note_expiry)
  return verbs
end

-- Returns whether a transaction needs more memory than it frees. The first write is at tx[first_write]; the head of commit.lua
-- lists the words of a write. A reply of at most MOST_REPLY bytes does not count. With a larger bound, more requests could end
-- when memory is full, but each could store a larger reply. If the transaction ends a request, its sends do not count, because
-- the entry of the request is removed. The writes may store as many bytes as they remove, so that sweeps go on when memory is
-- full. Only the words after the first key of a write count as bytes. So a DEL of one key counts as 0: its words do not show
-- how much the key held.
local MOST_REPLY = 256 * 1024
function seldom.adds(first_write, write_count, send_count)
  if #tx[head + 8] > MOST_REPLY or (send_count > 0 and tx[head + 1] == '') then return true end
  if not frees.DEL then
    for verb in string.gmatch('DEL UNLINK HDEL ZREM SREM LTRIM', '%a+') do frees[verb] = true end
    seldom.verbs()
  end
  local added, i = 0, first_write
  for _ = 1, write_count do
    local verb, last, write_bytes = tx[i + 2], i + 1 + tonumber(tx[i + 1]), 0
    -- Of ZADD only the members count, not the scores. So a sweep that removes a group of values, and adds it again with a
    -- later time, stores no more than it removes.
    for k = i + (verb == 'ZADD' and 5 or 4), last, verb == 'ZADD' and 2 or 1 do
      write_bytes = write_bytes + #tx[k]
    end
    -- These writes store nothing: those that set an expiry, and those that only read. A write only reads if its first word
    -- begins with "2" (byte 50). The verb `ends` may keep the answer, which is the reply that MOST_REPLY bounds.
    if frees[verb] then
      added = added - write_bytes
    elseif verb ~= 'PEXPIREAT' and verb ~= 'PERSIST' and verb ~= 'keep' and verb ~= 'ends'
      and string.byte(tx[i]) ~= 50 then
      added = added + write_bytes
    end
    i = last + 1
  end
  return added > 0
end

-- SEND_WORDS is the number of words of a send, which the head of commit.lua lists. `sendable[stream]` is true once the script
-- has seen that this key can take entries, so that each stream is checked once.
local SEND_WORDS, sendable = 8, {}
-- Makes the sends of a transaction, all or none. The first send is at tx[first_send]. Returns the reason if one of them is not
-- possible. Sends are made before the writes, because the script can undo a send, but not a write.
function seldom.send(first_send, count)
  go_to(bus)
  local last_send, sent = first_send + (count - 1) * SEND_WORDS, {}
  for i = first_send, last_send, SEND_WORDS do
    local stream = 'mesh:requests:' .. tx[i]
    local wrong = not sendable[stream] and wrong_type(stream, 'stream')
    if wrong then return wrong end
    sendable[stream] = true
  end
  for i = first_send, last_send, SEND_WORDS do
    local stream = 'mesh:requests:' .. tx[i]
    local id = append(stream, 'op', tx[i + 1], 'request', tx[i + 2], 'from', tx[i + 6],
      'reply_to', tx[i + 3], 'deadline', tx[i + 4], 'body', tx[i + 5], unpack(further_fields(tx[i + 7])))
    if type(id) == 'table' then
      for _, entry in ipairs(sent) do redis.call('XDEL', entry[1], entry[2]) end
      return stream .. ': ' .. tostring(id.err)
    end
    sent[#sent + 1] = {stream, id}
  end
  accepted = accepted + count
end

-- Does what options.lua does for a request that ends: frees its idempotency key or keeps the answer, and frees its place in a
-- lane. `words` are those of the verb `ends`: names and values of fields. Among them `Effects.wire` puts `kept`, which is "1"
-- if later calls with the key are to get the answer, too.
function seldom.end_options(words)
  options = options or make_options()
  local fields = options.named(words)
  local answer = {status = tx[head + 6], body = tx[head + 8], from = consumer, asked = tx[head + 2], db = database}
  options.ended(fields, answer, fields.kept == '1')
end

  return seldom
end
-- End of what few need.
