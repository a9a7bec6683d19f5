-- What every script of a quota knows; Python puts it in front of each.
--
-- KEYS[1]  hash  the allowance of the present window:
--                taken             requests that were let through
--                seen_ms           when the last of them was known to have been seen by the provider
--                blocked_until_ms  the provider itself said so; 0 when it said nothing
--                caution           successes still wanted, one request at a time, before many may go at once
--                run, run_since_ms how many of those there were, and when the first of them was let through;
--                                  -1: they came too slowly to prove anything in this window
-- KEYS[2]  zset  requests let through without a known outcome, by the ms until which they may leave
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
-- Nothing known yet, or all knowledge lost: let one go first.
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

-- Until when the last request without an outcome may leave; 0 when each has one.
local function last_send_by()
  local last = redis.call('ZREVRANGE', held, 0, 0, 'WITHSCORES')
  return tonumber(last[2] or 0)
end

-- When the provider takes requests again; 0 while it takes them. It blocks from when it saw the last request:
-- at the latest when that was answered, or, for one nobody answers for, when it could leave no more.
local function reopens()
  if blocked_until > 0 then return blocked_until end
  if taken < limit then return 0 end
  return math.max(seen, math.min(now, last_send_by())) + block_ms
end

-- The block is over. What has no outcome by now may or may not have been counted by the provider, whose count can
-- so be behind ours: each such doubt asks for one more success, one at a time, before many may go at once. A block
-- the provider told us of settles all older doubts; after it one goes first.
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
