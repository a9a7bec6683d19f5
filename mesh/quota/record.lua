-- Records the outcome of a request that was granted a slot.
-- common.lua stands before this script. All names that are not declared here are its locals.
-- ARGV[4]  id of the reservation
-- ARGV[5]  used       the provider took the request
--          unsent     the request was certainly not sent; its slot is free again
--          uncertain  the provider may have counted the request; its slot counts as used, and the next window begins with
--                     one request at a time
--          refused    the provider blocks; no replica is granted a slot for ARGV[6] ms
-- Returns {recorded, now, taken, reopens, caution}.
local TOO_SLOW = -1 -- a value of `run`: see common.lua
local id, outcome, retry_ms = ARGV[4], ARGV[5], tonumber(ARGV[6])

-- Counts a success while there is caution. One success for each doubt, and one more, prove that the provider's count and
-- ours agree. They must be the first successes of a window. If the provider's count is behind then, it is nearly full, so the
-- provider would refuse one of these requests. They must also be quick: after `block_ms`, the provider can have blocked and
-- opened again between them, and they prove nothing.
local function note_success(reserved_at_ms)
  if run_length == 0 then run_since_ms = reserved_at_ms end
  if run_length >= 0 then run_length = run_length + 1 end
  if run_length > 1 and now_ms >= run_since_ms + block_ms then run_length = TOO_SLOW end
  if run_length >= caution then caution, run_length, run_since_ms = 0, 0, 0 end
end

-- Until when (ms of Redis's clock) the request may be sent. Nil if its outcome was recorded, unless it was `uncertain`;
-- or if its window is over.
local send_by = tonumber(redis.call('ZSCORE', held_key, id) or nil)

-- A refusal counts even if its window is over: the provider is closed now. All other outcomes are about one window.
if outcome == 'refused' then
  redis.call('ZREM', held_key, id)
  blocked_until = math.max(blocked_until, now_ms + retry_ms)
elseif send_by and outcome == 'unsent' then
  redis.call('ZREM', held_key, id)
  taken = math.max(0, taken - 1)
elseif send_by and outcome == 'uncertain' then
  -- The request stays without an outcome, so it leaves a doubt. It was sent before now, if at all.
  redis.call('ZADD', held_key, to_text(now_ms), id)
elseif send_by and outcome == 'used' then
  redis.call('ZREM', held_key, id)
  seen_ms = math.max(seen_ms, now_ms)
  if caution > 0 then note_success(send_by - hold_ms) end
end
store()
return make_answer('recorded')
