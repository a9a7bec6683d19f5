-- Records the outcome of a request that was granted a slot.
-- ARGV[4]  id of the reservation
-- ARGV[5]  used       the provider took the request
--          unsent     the request was certainly not sent; its slot is free again
--          uncertain  the provider may have counted the request; its slot counts as used, and the next window begins with
--                     one request at a time
--          refused    the provider blocks; nobody is granted a slot for ARGV[6] ms
-- Returns {recorded, now, taken, reopens, caution}.
local TOO_SLOW = -1
local id, outcome, retry_ms = ARGV[4], ARGV[5], tonumber(ARGV[6])

-- Counts a success while there is caution. One success for each doubt, and one more, prove that the provider's count and
-- ours agree. They must be the first successes of a window. If the provider's count is behind then, it is nearly full, so the
-- provider would refuse one of these requests. They must also be quick: after `block_ms`, the provider can have blocked and
-- opened again between them, and they prove nothing.
local function note_success(reserved_at)
  if run == 0 then run_since = reserved_at end
  if run >= 0 then run = run + 1 end
  if run > 1 and now >= run_since + block_ms then run = TOO_SLOW end
  if run >= caution then caution, run, run_since = 0, 0, 0 end
end

-- Until when (ms) the request may be sent. Nil if its outcome was recorded before, or if its window is over.
local send_by = tonumber(redis.call('ZSCORE', held, id) or nil)

if outcome == 'refused' then
  redis.call('ZREM', held, id)
  blocked_until = math.max(blocked_until, now + retry_ms)
elseif send_by and outcome == 'unsent' then
  redis.call('ZREM', held, id)
  taken = math.max(0, taken - 1)
elseif send_by and outcome == 'uncertain' then
  redis.call('ZADD', held, text(now), id)
elseif send_by and outcome == 'used' then
  redis.call('ZREM', held, id)
  seen = math.max(seen, now)
  if caution > 0 then note_success(send_by - hold_ms) end
end
store()
return answer('recorded')
