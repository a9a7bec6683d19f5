-- Idempotency keys. All calls of one operation with one key share one request, and get one answer. An answer is a status, a
-- body and some further fields. A reply is the entry that brings the answer to one call. options.lua contains this file, so
-- `options` here is the table that `make_options` fills. Each key is a hash mesh:once:{op}:{key} with these fields:
--   request                 name of the shared request
--   sha                     SHA-1 of its body
--   state                   "open" until the request is answered, and then the status of the answer
--   while the state is "open":
--   stream, id              where the request is: its entry on a request stream, or "mesh:later" and its name while it waits
--   caller:{name}           "<deadline in ms, or 0> <reply stream>" of each call that waits; {name} is that call's own name
--   sent                    the request was also sent without a caller, so it goes on when no call waits any more
--   once the request is answered:
--   body, from, asked, db   fields of the reply
local once = {}

local function redis_key_of(op, key) return 'mesh:once:' .. op .. ':' .. key end

-- Returns whether the open request of a key is still there; see the fields `stream` and `id` above.
local function request_exists(stream, id)
  if stream == 'mesh:later' then return redis.pcall('ZSCORE', stream, id) end
  local entries = redis.pcall('XRANGE', stream, id, id)  -- an error has no elements
  return #entries > 0
end

-- Writes a reply. Nobody reads a stream that was deleted, so it is not created again (NOMKSTREAM). An error of Redis,
-- such as a key of another type, is ignored: the script goes on, and only this call gets no reply. `asked` is the id of the
-- request's entry. No further reply follows (`forwards` is 0), because a request with a key cannot be forwarded.
local function write_reply(reply_stream, call_name, op, answer)
  redis.pcall('XADD', reply_stream, 'NOMKSTREAM', '*', 'request', call_name, 'op', op, 'from', answer.from, 'status',
    answer.status, 'forwards', '0', 'body', answer.body, 'asked', answer.asked, 'db', answer.db or '')
end

-- Returns the state of a key, and the sha and the id of its request. Returns nothing if the key is free, and the error of Redis
-- if it is not a hash. The key is also free if somebody has deleted its open request by hand.
function once.find(op, key)
  -- `found` has these four fields, in this order.
  local found = redis.pcall('HMGET', redis_key_of(op, key), 'state', 'sha', 'stream', 'id')
  if found.err then return found end
  if found[1] and (found[1] ~= 'open' or request_exists(found[3] or '', found[4] or '')) then
    return {state = found[1], sha = found[2], id = found[4]}
  end
end

-- Decides about a new request with a key; `sha` is the SHA-1 of its body. Returns nothing if the key is free. Returns what
-- `find` returns if the new request is to get the answer of an earlier one. Returns nil, a code, and what the code is about
-- if the new request is refused.
function once.check(op, key, sha)
  local known = once.find(op, key)
  if not known then return end
  if known.err then return nil, 'wrong-type', redis_key_of(op, key) end
  if known.sha ~= sha then return nil, 'key-reused', key end
  return known
end

-- Sets the expiry of the key of an open request: `keep_ms` after its deadline. A request without a deadline holds its key for
-- a year and `keep_ms`. The key has an expiry because somebody may delete the request by hand. Then nothing else would remove
-- the key. With the last argument 'GT', the expiry only moves to a later moment.
local YEAR_MS = 366 * 86400000
local function set_expiry(redis_key, keep_ms, ttl_ms, ...)
  redis.call('PEXPIRE', redis_key, string.format('%.0f', (tonumber(keep_ms) or 0) + (ttl_ms or YEAR_MS)), ...)
end

-- Lets a new request hold its key. `stream` and `id` say where the request is. `ttl_ms` is the time until its deadline; nil if
-- it has none. If the request waits, `wait_ms` is the time until it is due. A request without a deadline holds its key for
-- `wait_ms`, a year and `keep_ms`.
function once.open(op, key, sha, request, stream, id, keep_ms, ttl_ms, wait_ms)
  local redis_key = redis_key_of(op, key)
  -- The key may have the callers of a request that somebody has deleted by hand. They called with another body, perhaps.
  redis.call('DEL', redis_key)
  redis.call('HSET', redis_key, 'request', request, 'sha', sha, 'state', 'open', 'stream', stream, 'id', id)
  set_expiry(redis_key, keep_ms, ttl_ms or YEAR_MS + (wait_ms or 0))
end

-- Notes that a call waits for the answer on its reply stream. A `reply_stream` of "" stands for a send, for which nobody waits.
function once.wait(op, key, call_name, deadline, reply_stream)
  if reply_stream == '' then
    redis.call('HSET', redis_key_of(op, key), 'sent', '1')
  else
    redis.call('HSET', redis_key_of(op, key), 'caller:' .. call_name, deadline .. ' ' .. reply_stream)
  end
end

-- Answers a call with the stored answer.
function once.repeat_answer(op, key, call_name, reply_stream)
  local stored = redis.call('HMGET', redis_key_of(op, key), 'state', 'body', 'from', 'asked', 'db')
  write_reply(reply_stream, call_name, op,
    {status = stored[1], body = stored[2], from = stored[3], asked = stored[4], db = stored[5]})
end

-- Returns the fields of the hash of a key, by name, if the request with these `fields` holds the key and is open; else a false
-- value. Below, `fields` are the fields of the request's entry, and `facts` those of the key's hash.
local function facts_while_open(fields)
  local flat = redis.pcall('HGETALL', redis_key_of(fields.op, fields.once))
  local facts = flat.err and {} or options.named(flat)
  return facts.state == 'open' and facts.request == fields.request and facts
end

-- Answers the other calls that wait for a request, and frees its key. Without an `answer`, nobody is answered. With
-- `keeps_answer`, the key keeps the answer for later calls.
function once.ended(fields, answer, keeps_answer)
  local facts, redis_key = facts_while_open(fields), redis_key_of(fields.op, fields.once)
  if not facts then return end
  for field, caller in pairs(answer and facts or {}) do
    local name, reply_stream = string.match(field, '^caller:(.*)$'), string.match(caller, '^%d+ (.*)$')
    -- The script, not this function, answers the call that made the request.
    if name and reply_stream and name ~= fields.request then write_reply(reply_stream, name, fields.op, answer) end
  end
  redis.call('DEL', redis_key)
  if keeps_answer then
    redis.call('HSET', redis_key, 'request', fields.request, 'sha', facts.sha, 'state', answer.status, 'body', answer.body,
      'from', answer.from, 'asked', answer.asked, 'db', answer.db or '')
    redis.call('PEXPIRE', redis_key, string.format('%.0f', tonumber(fields.keep) or 0))
  end
end

-- Notes where a request is from now on. `ttl_ms` is the time until its deadline; nil if it has none. The idempotency key then
-- expires `fields.keep` (ms) after the deadline, or later if its expiry was later.
function once.moved(fields, stream, id, ttl_ms)
  if not facts_while_open(fields) then return end
  local redis_key = redis_key_of(fields.op, fields.once)
  redis.call('HSET', redis_key, 'stream', stream, 'id', id)
  set_expiry(redis_key, fields.keep, ttl_ms, 'GT')
end

-- Removes a call that no longer waits. Returns nothing if another call or a send needs the request; else the stream and the id
-- of the request.
function once.leave(op, key, call_name)
  if redis.pcall('HDEL', redis_key_of(op, key), 'caller:' .. call_name) ~= 1 then return end
  local facts = options.named(redis.call('HGETALL', redis_key_of(op, key)))
  if facts.sent then return end
  for field in pairs(facts) do
    if string.sub(field, 1, 7) == 'caller:' then return end  -- another call waits; 7 is the length of "caller:"
  end
  return facts.stream, facts.id
end

-- Returns the latest deadline (ms) of all calls that wait for a request, as text. "0" if one of them has no deadline, or if
-- the request was also sent without a caller: then it must go on. Nothing if all deadlines have passed.
function once.latest(fields, now_ms)
  local facts = facts_while_open(fields)
  if not facts then return end
  local latest = facts.sent and math.huge or now_ms
  for field, caller in pairs(facts) do
    local deadline = string.sub(field, 1, 7) == 'caller:' and tonumber(string.match(caller, '^%d+'))
    if deadline then latest = math.max(latest, deadline == 0 and math.huge or deadline) end
  end
  if latest > now_ms then return latest == math.huge and '0' or string.format('%.0f', latest) end
end
