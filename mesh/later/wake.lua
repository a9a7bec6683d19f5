#!lua flags=allow-oom
-- Moves the requests whose time has come to their streams. Any replica may run it at any moment, also twice.
-- Runs when memory is full, too: the requests were accepted before.
-- KEYS: later, schedules
-- ARGV: most requests to move
-- Returns {how many were moved, the earliest time (ms) that something is due, or "", the due schedules...}
local later_key, schedules_key, most = KEYS[1], KEYS[2], tonumber(ARGV[1])
local POSTPONED_MS = 1000
-- These fields of the hash are not for the stream.
local OWN = {to = true, ttl = true, parked = true}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

--[[ ../requests/append.lua ]]

--[[ ../requests/options.lua ]]

local options = make_options()

-- Returns whether the request is over: on its stream, or without content. The stream may be a key of another type.
local function put(name, entry_key, due)
  local words, named = {}, {}
  local fields = redis.call('HGETALL', entry_key)
  for i = 1, #fields, 2 do
    local field, value = fields[i], fields[i + 1]
    named[field] = value
    if not OWN[field] then words[#words + 1], words[#words + 2] = field, value end
  end
  if not named.to then return true end
  if named.parked then redis.call('ZREM', 'mesh:parked:' .. named.parked, name) end
  if not named.deadline then
    local deadline = named.ttl == '0' and '0' or string.format('%.0f', due + named.ttl)
    words[#words + 1], words[#words + 2] = 'deadline', deadline
  end
  local stream = 'mesh:requests:' .. named.to
  local id = append(stream, unpack(words))
  if type(id) ~= 'string' then return false end
  options.moved(named, stream, id, 0)
  return true
end

local due = redis.call('ZRANGE', later_key, '-inf', now, 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
for i = 1, #due, 2 do
  local key, entry_key = due[i], later_key .. ':' .. due[i]
  if put(key, entry_key, due[i + 1]) then
    redis.call('ZREM', later_key, key)
    redis.call('DEL', entry_key)
  else
    redis.call('ZADD', later_key, now + POSTPONED_MS, key)
  end
end

--[[ next_due.lua ]]
local ticks = redis.call('ZRANGE', schedules_key, '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)
return {#due / 2, next_due(later_key, schedules_key), unpack(ticks)}
