#!lua flags=allow-oom
-- Moves waiting requests that are due to their streams. Any replica may run this script at any moment, also twice.
-- The script also runs when memory is full (`allow-oom`), because the requests were accepted before.
-- KEYS: later, schedules, books
-- ARGV: maximum number of requests to move
-- Returns {how many requests were due, when (ms) a request or a schedule is due next or "", name of a request that could not
--       be moved or "", why not or "", and then each due schedule}
local later_key, schedules_key, books_key, most_woken = KEYS[1], KEYS[2], KEYS[3], tonumber(ARGV[1])
-- After this time a request that could not be put on its stream is tried again. Until then it does not hold up the others. With
-- less, each run would meet the same requests again; with more, a request waits for longer after its stream was repaired.
local POSTPONED_MS = 1000
-- Fields of the hash of a waiting request that its entry on the stream does not have. limits.lua says what `wants` and `rate`
-- are.
local NOT_ON_STREAM = {to = true, ttl = true, parked = true, wants = true, rate = true}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- This part defines `append`.
--[[ ../requests/append.lua ]]

-- This part defines `make_options`.
--[[ ../requests/options.lua ]]

local options = make_options()

-- Outcomes of a due request: it has left mesh:later, it waits on, or it could not be moved.
local GONE, WAITS, FAILED = 1, 2, 3

-- Ends a request whose deadline has passed while it waited for a place in its lane. If other calls with its idempotency key
-- have later deadlines, the request waits on until the latest of these ('0' stands for no deadline).
local function expire(name, about)
  local latest = about.once and options.once.latest(about, now)
  if latest then
    redis.call('HSET', later_key .. ':' .. name, 'deadline', latest)
    redis.call('ZADD', later_key, latest == '0' and '+inf' or latest, name)
    options.once.moved(about, later_key, name, latest ~= '0' and latest - now or nil)
    return WAITS
  end
  -- `pcall`: if somebody has overwritten the books, only this count is missing.
  redis.pcall('HINCRBY', books_key, 'expired', 1)
  return GONE
end

-- Puts a request on its stream, if its limit lets it begin. Returns GONE if the request is on its stream now, WAITS if it
-- waits on, or FAILED and the reason if the stream takes no entry.
local function put(name, about, words)
  local stream, id = 'mesh:requests:' .. about.to, nil
  local begins_at = about.rate and options.limits().begin(about.rate)
  if begins_at then
    redis.call('ZADD', later_key, begins_at, name)
    return WAITS
  end
  if about.wants then
    id = options.limits().place(about.wants, name, about.to, words, about.deadline)
    if not id then return WAITS end
  else
    id = append(stream, unpack(words))
  end
  if type(id) ~= 'string' then return FAILED, stream .. ': ' .. tostring(id.err) end
  -- With 0, the idempotency key keeps its expiry, but lives at least for the time `keep` of its request from now on.
  options.moved(about, stream, id, 0)
  return GONE
end

-- Returns whether the deadline of a request has passed. A request that waits for a place in its lane is due at its deadline.
-- If somebody has deleted the keys of a lane, `limits.waits` is true for all of its requests. So a request counts as one that
-- waits for a place only if it is also late.
local function is_late(about)
  local deadline = tonumber(about.deadline or '0') or 0
  return deadline > 0 and deadline <= now
end

-- Moves a waiting request that was due at `due` (ms) to its stream, ends it, or lets it wait on. Returns an outcome, and what
-- the loop below calls `more`. `about` has the fields of the hash by name, and `words` those of the new entry as a list.
local function wake(name, due)
  local words, about, flat = {}, {}, redis.call('HGETALL', later_key .. ':' .. name)
  for i = 1, #flat, 2 do
    local field, value = flat[i], flat[i + 1]
    about[field] = value
    if not NOT_ON_STREAM[field] then words[#words + 1], words[#words + 2] = field, value end
  end
  -- Somebody has deleted the hash of the request.
  if not about.to then return GONE end
  if is_late(about) and about.limit and options.limits().waits(about.limit) then return expire(name, about), about end
  if about.parked then redis.call('ZREM', 'mesh:parked:' .. about.parked, name) end
  if not about.deadline then
    -- A request that was written by hand may have neither a deadline nor a ttl. Then it has no deadline.
    local ttl = about.ttl or '0'
    about.deadline = ttl == '0' and '0' or string.format('%.0f', due + ttl)
    words[#words + 1], words[#words + 2] = 'deadline', about.deadline
  end
  return put(name, about, words)
end

local unmovable, reason = '', ''
local names_and_times = redis.call('ZRANGE', later_key, '-inf', now, 'BYSCORE', 'LIMIT', 0, most_woken, 'WITHSCORES')
for i = 1, #names_and_times, 2 do
  local name = names_and_times[i]
  -- `more` has the fields of a request that has expired, or the reason if the request could not be moved.
  local ran, outcome, more = pcall(wake, name, names_and_times[i + 1])
  -- If a request cannot be moved, such as because a key holds another type, the other requests are still moved.
  if not ran then outcome, more = FAILED, outcome end
  if outcome == GONE then
    redis.call('ZREM', later_key, name)
    redis.call('DEL', later_key .. ':' .. name)
    if more then options.ended(more) end
  elseif outcome == FAILED then
    redis.call('ZADD', later_key, now + POSTPONED_MS, name)
    unmovable, reason = name, type(more) == 'table' and more.err or tostring(more)
  end
end

-- This part defines `next_due`.
--[[ next_due.lua ]]
-- The next run of this script finds the schedules beyond the first 100. There is a bound because `unpack` fails at about
-- 8000 words.
local due_schedules = redis.call('ZRANGE', schedules_key, '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)
return {#names_and_times / 2, next_due(later_key, schedules_key), unmovable, reason, unpack(due_schedules)}
