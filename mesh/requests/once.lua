-- Idempotency keys: one request for all calls of an operation with one key, and one answer. Each key is a hash:
--   mesh:once:{op}:{key}   request (name of the one request for all calls), sha, state, and while that is open:
--     stream, id           where the request is; it waits for a try if the stream is "mesh:later"
--     caller:{request}     "<deadline in ms, or 0> <reply stream>" of each call that waits for the answer
--     sent                 it was sent without a caller, so it goes on when nobody waits
--   and once it is answered (state is the status of the answer):
--     body, from, asked, db   as in a reply
local once = {}

local function key_of(op, key) return 'mesh:once:' .. op .. ':' .. key end

local function is_there(stream, id)
  if stream == 'mesh:later' then return redis.call('ZSCORE', stream, id) end
  local found = redis.pcall('XRANGE', stream, id, id)
  return #found > 0
end

local function reply(stream, request, op, answer)
  redis.pcall('XADD', stream, 'NOMKSTREAM', '*', 'request', request, 'op', op, 'from', answer.from, 'status',
    answer.status, 'forwards', '0', 'body', answer.body, 'asked', answer.asked, 'db', answer.db or '')
end

-- Returns the state of a key, the sha, and the id of its request; nothing if the key is free; or an error if it is not a
-- hash. A request that somebody has deleted by hand does not hold its key.
function once.find(op, key)
  local found = redis.pcall('HMGET', key_of(op, key), 'state', 'sha', 'stream', 'id')
  if found.err then return found end
  if found[1] and (found[1] ~= 'open' or is_there(found[3] or '', found[4] or '')) then
    return {state = found[1], sha = found[2], id = found[4]}
  end
end

-- Looks whether the request of a key exists, or its answer, for another request with this key and this sha of its body.
-- Returns what `find` returns; and why the other request is refused, if it is.
function once.check(op, key, sha)
  local known = once.find(op, key)
  if not known then return end
  if known.err then return nil, 'wrong-type', key_of(op, key) end
  if known.sha ~= sha then return nil, 'key-reused', key end
  return known
end

-- A request holds its key until its deadline and `keep` longer; one without a deadline holds it for a year and `keep`, far
-- longer than any waits. The bound is for a request that somebody has deleted by hand: nothing else would remove its key.
local YEAR_MS = 366 * 86400000
local function hold(name, keep, ms, ...)
  redis.call('PEXPIRE', name, string.format('%.0f', (tonumber(keep) or 0) + (ms or YEAR_MS)), ...)
end

-- Lets a request hold its key, which is on its stream or in "mesh:later". It has so many ms until its deadline; none: it
-- has no deadline, and waits for so many ms until it is due.
function once.open(op, key, sha, request, stream, id, keep, ms, wait_ms)
  local name = key_of(op, key)
  redis.call('HSET', name, 'request', request, 'sha', sha, 'state', 'open', 'stream', stream, 'id', id)
  hold(name, keep, ms or YEAR_MS + (wait_ms or 0))
end

-- Lets a call wait for the answer; without a reply stream it is one that nobody waits for.
function once.wait(op, key, request, deadline, stream)
  if stream == '' then
    redis.call('HSET', key_of(op, key), 'sent', '1')
  else
    redis.call('HSET', key_of(op, key), 'caller:' .. request, deadline .. ' ' .. stream)
  end
end

-- Answers a call with what is kept.
function once.repeat_answer(op, key, request, stream)
  local kept = redis.call('HMGET', key_of(op, key), 'state', 'body', 'from', 'asked', 'db')
  reply(stream, request, op, {status = kept[1], body = kept[2], from = kept[3], asked = kept[4], db = kept[5]})
end

-- Returns the fields of a key, by name, while this request holds it; else nothing.
local function held(fields)
  local flat = redis.pcall('HGETALL', key_of(fields.op, fields.once))
  local facts = flat.err and {} or options.named(flat)
  return facts.state == 'open' and facts.request == fields.request and facts
end

-- Answers the other calls, and frees the key; or keeps the answer there.
function once.ended(fields, answer, keeps)
  local facts, name = held(fields), key_of(fields.op, fields.once)
  if not facts then return end
  for field, caller in pairs(answer and facts or {}) do
    local request, stream = string.match(field, '^caller:(.*)$'), string.match(caller, '^%d+ (.*)$')
    -- The script itself answers the call that made the request.
    if request and stream and request ~= fields.request then reply(stream, request, fields.op, answer) end
  end
  redis.call('DEL', name)
  if keeps then
    redis.call('HSET', name, 'request', fields.request, 'sha', facts.sha, 'state', answer.status, 'body', answer.body,
      'from', answer.from, 'asked', answer.asked, 'db', answer.db or '')
    redis.call('PEXPIRE', name, string.format('%.0f', tonumber(fields.keep) or 0))
  end
end

-- A request is somewhere else from now on, for at least so many ms; none: it has no deadline.
function once.moved(fields, stream, id, ms)
  if not held(fields) then return end
  local name = key_of(fields.op, fields.once)
  redis.call('HSET', name, 'stream', stream, 'id', id)
  hold(name, fields.keep, ms, 'GT')
end

-- Lets a call leave. If no other call waits for the request, returns the stream and the id of it.
function once.leave(op, key, request)
  if redis.pcall('HDEL', key_of(op, key), 'caller:' .. request) ~= 1 then return end
  local facts = options.named(redis.call('HGETALL', key_of(op, key)))
  if facts.sent then return end
  for field in pairs(facts) do
    if string.sub(field, 1, 7) == 'caller:' then return end
  end
  return facts.stream, facts.id
end

-- Returns the latest deadline of the callers that still have time, "0" where nobody needs to wait; nothing if all are late.
function once.latest(fields, now)
  local facts = held(fields)
  if not facts then return end
  local latest = facts.sent and math.huge or now
  for field, caller in pairs(facts) do
    local deadline = string.sub(field, 1, 7) == 'caller:' and tonumber(string.match(caller, '^%d+'))
    if deadline then latest = math.max(latest, deadline == 0 and math.huge or deadline) end
  end
  if latest > now then return latest == math.huge and '0' or string.format('%.0f', latest) end
end
