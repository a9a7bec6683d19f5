-- The part that all scripts of a quota share; Python puts it in front of each.
--
-- KEYS[1]  hash  the allowance in the present window:
--                taken             requests that were granted a slot
--                seen_ms           when the provider had seen the last of them, as far as is known
--                blocked_until_ms  the end of the block that the provider told; 0 when it told none
--                caution           successes still needed, one request at a time, before many may go at once
--                run, run_since_ms number of these successes so far, and when the first was granted its slot;
--                                  run -1: they came too slowly to prove anything in this window
-- KEYS[2]  zset  granted requests without a known outcome, by the time (ms) until which they may leave
-- ARGV[1]  limit     requests the provider takes before it blocks
-- ARGV[2]  block_ms  how long it blocks
-- ARGV[3]  hold_ms   how long after the reservation a request may still leave
local allowance, held = KEYS[1], KEYS[2]
local limit, block_ms, hold_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local stored = redis.call('HMGET', allowance, 'taken', 'seen_ms', 'blocked_until_ms', 'caution', 'run', 'run_since_ms')
local taken = tonumber(stored[1]) or 0
local seen = tonumber(stored[2]) or 0
local blocked_until = tonumber(stored[3]) or 0
-- Nothing is known yet, or all was lost: one request goes first.
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

-- Returns until when the last request without an outcome may leave, or 0 when each has one.
local function last_send_by()
  local last = redis.call('ZREVRANGE', held, 0, 0, 'WITHSCORES')
  return tonumber(last[2] or 0)
end

-- Returns when the provider takes requests again, or 0 while it takes them. The block begins when the provider saw the
-- last request: at the latest when we had its answer or, for a request without an outcome, when it could no longer leave.
local function reopens()
  if blocked_until > 0 then return blocked_until end
  if taken < limit then return 0 end
  return math.max(seen, math.min(now, last_send_by())) + block_ms
end

-- Begins a new window after a block. The provider may not have counted the requests without an outcome, so its count can
-- be behind ours. Each such doubt needs one more success, one request at a time, before many may go at once. A block that
-- the provider told us resolves all older doubts; after it one request goes first.
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
