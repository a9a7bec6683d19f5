-- Sends the requests of one tick, and sets the time of the next tick in the same step. So a tick is sent once, even if
-- several replicas try.
-- KEYS: schedules, schedule, books
-- ARGV:
--   1 to 3    name of the schedule, tick (ms) that the caller has read, following tick (ms)
--   4         1 to send this tick, 0 to leave it out
--   5 to 8    of the requests: operation, sender, ttl (ms; 0: no deadline), body
--   9         1 to leave this tick out also if a request of the last tick has not ended; 0 to send it all the same
--   10        definition from which the caller computed the following tick
--   11        address: a class, "db<n>", or "*" for every live database
--   12        only with "*": the number of databases
-- Returns how many requests were sent; -1 if the tick is not due or was dealt with already, or if the definition has changed.
-- The caller, `Waking._send_tick`, logs only a result of 0.
local schedules_key, schedule_key, books_key = KEYS[1], KEYS[2], KEYS[3]
local name, tick, following, must_send, op, sender, ttl, body, skips_if_running, definition, to = unpack(ARGV, 1, 11)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The next tick and the definition that Redis has now. The caller's own are `tick` and `definition`.
local next, known = unpack(redis.call('HMGET', schedule_key, 'next', 'definition'))
if next ~= tick or known ~= definition or now < tonumber(tick) then return -1 end

-- Returns whether a request of the last tick, whose entry is gone, goes on elsewhere. Its limit may have moved it: to
-- mesh:later, or to a new entry of its stream. So the function looks for its name in mesh:later, and in at most MOST_SEARCHED
-- entries of the stream. More would hold up the server for longer, at each tick; a request behind them is not found, and the
-- next one may run beside it.
local MOST_SEARCHED = 1000
local function has_moved(stream, request_name)
  if redis.call('ZSCORE', 'mesh:later', request_name) then return true end
  for _, entry in ipairs(redis.pcall('XRANGE', stream, '-', '+', 'COUNT', MOST_SEARCHED)) do
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'request' and entry[2][i + 1] == request_name then return true end
    end
  end
end

-- Returns the name of the request of a tick. `target` is one address of the tick: a class or "db<n>".
local function request_name_of(moment, target) return name .. '.' .. moment .. '.' .. target end

-- Returns whether a request of the last tick has not ended. The schedule notes the entries of these requests as
-- "stream id stream id ...".
local function still_runs()
  local last_tick, noted_entries = unpack(redis.call('HMGET', schedule_key, 'last', 'entries'))
  for stream, id in string.gmatch(noted_entries or '', '(%S+) (%S+)') do
    local found_entries = redis.pcall('XRANGE', stream, id, id)  -- an error has no elements
    if #found_entries > 0 or has_moved(stream, request_name_of(last_tick or '', string.match(stream, '[^:]+$'))) then
      return true
    end
  end
end

-- Returns the addresses of this tick. For "*" they are all databases that have a roster row.
local function targets()
  if to ~= '*' then return {to} end
  local live = {}
  for n = 0, tonumber(ARGV[12]) - 1 do
    if redis.call('EXISTS', 'mesh:replica:' .. n) == 1 then live[#live + 1] = 'db' .. n end
  end
  return live
end

-- This part defines `append`.
--[[ ../requests/append.lua ]]

-- A full stream takes the request all the same: here nothing compares its length with the setting MESH_STREAM_BOUND. A tick
-- adds at most one request to each stream.
local entries, sent_count = {}, 0
local function send(target)
  local deadline = ttl == '0' and '0' or string.format('%.0f', now + ttl)
  local stream = 'mesh:requests:' .. target
  local id = append(stream, 'op', op, 'request', request_name_of(tick, target), 'from', sender,
    'reply_to', '', 'deadline', deadline, 'body', body)
  -- If the stream takes no entry, because its key holds another type, this target gets no request of this tick.
  if type(id) == 'string' then
    sent_count = sent_count + 1
    entries[#entries + 1] = stream .. ' ' .. id
  end
end

if must_send == '1' and not (skips_if_running == '1' and still_runs()) then
  for _, target in ipairs(targets()) do send(target) end
  redis.call('HSET', schedule_key, 'entries', table.concat(entries, ' '), 'last', tick)
end
redis.call('HSET', schedule_key, 'next', following)
redis.call('ZADD', schedules_key, following, name)
-- `pcall`: if somebody has overwritten the books, only this count is missing.
if sent_count > 0 then redis.pcall('HINCRBY', books_key, 'accepted', sent_count) end
return sent_count
