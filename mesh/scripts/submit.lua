-- Puts requests on their streams: each group of them all or not at all, with the roster and the bounds of this moment.
-- Not allowed when memory is full: that is how new work is refused while old work is finished.
-- KEYS: books, submitted, lease
-- ARGV: holder, batch number, databases, bound of a stream, sender, reply stream, JSON groups
--   group: list of {to = class, "db<n>" or "*" (every live database), op, key, ttl (ms, 0: never), body}
-- Returns one item per group, as JSON: {"ids": [[stream, id, key], ...], "deadlines": [...]} or {"error": code, "about": what}
local books_key, submitted_key, lease_key = KEYS[1], KEYS[2], KEYS[3]
local holder, batch, databases, bound = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local sender, reply_to, groups = ARGV[5], ARGV[6], cjson.decode(ARGV[7])

if redis.call('GET', lease_key) ~= holder then return redis.error_reply('LEASELOST the lease is over') end
local before = redis.call('HMGET', submitted_key, 'batch', 'result')
if before[1] == batch then return before[2] end

local live, all = {}, {}
for n = 0, databases - 1 do
  local class = redis.call('HGET', 'mesh:replica:' .. n, 'class')
  if class then
    live[class] = true
    live['db' .. n] = true
    all[#all + 1] = 'db' .. n
  end
end

local waiting = {}
local function room(to)
  waiting[to] = (waiting[to] or redis.call('XLEN', 'mesh:requests:' .. to)) + 1
  return waiting[to] <= bound
end

local function refused(group)
  for _, ask in ipairs(group) do
    if ask.to ~= '*' then
      if not live[ask.to] then return 'no-replica', ask.to end
      if not room(ask.to) then return 'busy', ask.to end
    else
      for _, to in ipairs(all) do
        if not room(to) then return 'busy', to end
      end
    end
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local accepted = 0
local function put(ask, to)
  local deadline = ask.ttl == 0 and '0' or string.format('%.0f', now + ask.ttl)
  local key = ask.to == '*' and ask.key .. '.' .. to or ask.key
  local id = redis.call('XADD', 'mesh:requests:' .. to, '*', 'op', ask.op, 'request', key, 'from', sender,
    'reply_to', reply_to, 'deadline', deadline, 'body', ask.body)
  accepted = accepted + 1
  return {to, id, key}
end

local results = {}
for i, group in ipairs(groups) do
  local code, about = refused(group)
  if code then
    results[i] = {error = code, about = about}
  else
    local ids = {}
    for _, ask in ipairs(group) do
      if ask.to ~= '*' then
        ids[#ids + 1] = put(ask, ask.to)
      else
        for _, to in ipairs(all) do ids[#ids + 1] = put(ask, to) end
      end
    end
    results[i] = {ids = ids}
  end
end
if accepted > 0 then redis.call('HINCRBY', books_key, 'accepted', accepted) end
local result = cjson.encode(results)
redis.call('HSET', submitted_key, 'batch', batch, 'result', result)
return result
