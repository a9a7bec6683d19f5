-- The beginning of all scripts of a quota; quota.py puts it before each of them. A window lasts from one opening of the
-- provider to the next.
--
-- KEYS[1]  hash  the allowance in the present window:
--                taken             how many requests were granted a slot
--                seen_ms           the latest time at which the provider is known to have seen one of them
--                blocked_until_ms  the end of the block that the provider has told us of; 0 if it has told of none
--                caution           how many requests must succeed one at a time, before several may be sent at once
--                run               how many requests have succeeded one at a time in this window, while there is caution;
--                                  -1 if they were so slow that they prove nothing (note_success of record.lua)
--                run_since_ms      when the first of these was granted its slot
-- KEYS[2]  zset  granted requests whose outcome is not known, by the time (ms) until which they may be sent
-- ARGV[1]  limit     how many requests the provider takes before it blocks
-- ARGV[2]  block_ms  how long the provider blocks
-- ARGV[3]  hold_ms   how long after its reservation a request may still be sent
local allowance_key, held_key = KEYS[1], KEYS[2]
local limit, block_ms, hold_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local server_time = redis.call('TIME')
local now_ms = tonumber(server_time[1]) * 1000 + math.floor(tonumber(server_time[2]) / 1000)

local fields = redis.call('HMGET', allowance_key, 'taken', 'seen_ms', 'blocked_until_ms', 'caution', 'run', 'run_since_ms')
local taken = tonumber(fields[1]) or 0
local seen_ms = tonumber(fields[2]) or 0
local blocked_until = tonumber(fields[3]) or 0
-- No caution is stored if nothing is known yet, or if the data were lost. Then one request is sent first.
local caution = tonumber(fields[4]) or 1
local run_length = tonumber(fields[5]) or 0
local run_since_ms = tonumber(fields[6]) or 0

-- Redis's own conversion may write a large round number with an exponent, such as 1.7e+12.
local function to_text(number)
  return string.format('%.0f', number)
end

local function store()
  redis.call('HSET', allowance_key, 'taken', to_text(taken), 'seen_ms', to_text(seen_ms),
    'blocked_until_ms', to_text(blocked_until), 'caution', to_text(caution), 'run', to_text(run_length),
    'run_since_ms', to_text(run_since_ms))
end

-- Returns the time (ms) until which the last request without an outcome may be sent; 0 if all requests have an outcome.
local function last_send_by_ms()
  local last_held = redis.call('ZREVRANGE', held_key, 0, 0, 'WITHSCORES')
  return tonumber(last_held[2] or 0)
end

-- Returns when (ms) the provider takes requests again; 0 while it takes them. The block begins when the provider sees the
-- last request that it takes. We know only the latest possible moment of this: the time when its answer came. A request
-- without an outcome has no such time. The time until which it may be sent takes its place, or `now_ms` if that is earlier.
local function reopens_at_ms()
  if blocked_until > 0 then return blocked_until end
  if taken < limit then return 0 end
  return math.max(seen_ms, math.min(now_ms, last_send_by_ms())) + block_ms
end

-- Begins a new window after a block. The provider may not have counted the requests without an outcome, so its count may be
-- behind ours. For each such doubt, one more request must succeed alone before several may be sent at once. A block that the
-- provider has told us of ends the doubts of earlier windows. After such a block, one request is sent first. Requests
-- without an outcome count as doubts even then: a doubt too many costs time, but a doubt too few may cost refusals.
local function open_window()
  -- Whether the provider has told us of the block.
  local told = blocked_until > 0
  local doubts = redis.call('ZREMRANGEBYSCORE', held_key, '-inf', to_text(now_ms))
  if not told then doubts = doubts + math.max(caution - 1, 0) end
  -- No more than `limit` requests can succeed in one window.
  if told or doubts > 0 then caution = math.min(limit, doubts + 1) end
  taken = redis.call('ZCARD', held_key)  -- requests that may still be sent keep their slots
  seen_ms, blocked_until, run_length, run_since_ms = 0, 0, 0, 0
end

-- Returns what each script of a quota answers; `Quota._read_answer` reads it.
local function make_answer(verdict)
  return { verdict, now_ms, taken, reopens_at_ms(), caution }
end
