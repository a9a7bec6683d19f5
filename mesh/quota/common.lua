-- The beginning of all scripts of a quota; quota.py puts it before each of them.
--
-- KEYS[1]  hash  the allowance in the present window:
--                taken             how many requests were granted a slot
--                seen_ms           the latest time at which the provider is known to have seen one of them
--                blocked_until_ms  the end of the block that the provider has told us of; 0 if it has told of none
--                caution           how many requests must still succeed one at a time, before several may be sent at once
--                run               how many of these have succeeded so far; -1 if they were so slow that they prove
--                                  nothing in this window
--                run_since_ms      when the first of these was granted its slot
-- KEYS[2]  zset  granted requests whose outcome is not known, by the time (ms) until which they may be sent
-- ARGV[1]  limit     how many requests the provider takes before it blocks
-- ARGV[2]  block_ms  how long the provider blocks
-- ARGV[3]  hold_ms   how long after its reservation a request may still be sent
local allowance, held = KEYS[1], KEYS[2]
local limit, block_ms, hold_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local stored = redis.call('HMGET', allowance, 'taken', 'seen_ms', 'blocked_until_ms', 'caution', 'run', 'run_since_ms')
local taken = tonumber(stored[1]) or 0
local seen = tonumber(stored[2]) or 0
local blocked_until = tonumber(stored[3]) or 0
-- No caution is stored if nothing is known yet, or if the data were lost. Then one request is sent first.
local caution = tonumber(stored[4]) or 1
local run = tonumber(stored[5]) or 0
local run_since = tonumber(stored[6]) or 0

local function text(number)
  return string.format('%.0f', number)
end

local function store()
  redis.call('HSET', allowance, 'taken', text(taken), 'seen_ms', text(seen), 'blocked_until_ms', text(blocked_until),
    'caution', text(caution), 'run', text(run), 'run_since_ms', text(run_since))
end

-- Returns the time (ms) until which the last request without an outcome may be sent; 0 if all requests have an outcome.
local function last_send_by()
  local last = redis.call('ZREVRANGE', held, 0, 0, 'WITHSCORES')
  return tonumber(last[2] or 0)
end

-- Returns when (ms) the provider takes requests again; 0 while it takes them. The block begins when the provider sees the
-- last request that it takes. We know only the latest possible moment of this: when the answer to the request came; or, if
-- the request has no outcome, when it can no longer be sent.
local function reopens()
  if blocked_until > 0 then return blocked_until end
  if taken < limit then return 0 end
  return math.max(seen, math.min(now, last_send_by())) + block_ms
end

-- Begins a new window after a block. The provider may not have counted the requests without an outcome, so its count may be
-- behind ours. For each such doubt, one more request must succeed alone before several may be sent at once. A block that the
-- provider has told us of ends all older doubts. After such a block, one request is sent first.
local function open_window()
  local told = blocked_until > 0
  local doubts = redis.call('ZREMRANGEBYSCORE', held, '-inf', text(now))
  if not told then doubts = doubts + math.max(caution - 1, 0) end
  if told or doubts > 0 then caution = math.min(limit, doubts + 1) end
  taken = redis.call('ZCARD', held)
  seen, blocked_until, run, run_since = 0, 0, 0, 0
end

local function answer(verdict)
  return { verdict, now, taken, reopens(), caution }
end
