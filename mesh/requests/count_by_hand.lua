-- Corrects the books for what no script has counted: what was deleted with its stream (DEL, FLUSHALL) is lost; what was
-- written to a stream by hand (XADD) is accepted, and counted in `by_hand` as well.
-- Returns the counts {accepted, answered, expired, cancelled, dead, lost, in flight}
local function corrected(books_key, first, last)
  local waiting = 0
  for k = first, last do waiting = waiting + redis.call('XLEN', KEYS[k]) end
  local counts = redis.call('HMGET', books_key, 'accepted', 'answered', 'expired', 'cancelled', 'dead', 'lost')
  local missing = -waiting
  for i = 1, 6 do
    counts[i] = tonumber(counts[i] or '0')
    missing = missing + (i == 1 and counts[i] or -counts[i])
  end
  counts[7] = waiting
  if missing > 0 then
    counts[6] = redis.call('HINCRBY', books_key, 'lost', missing)
  elseif missing < 0 then
    counts[1] = redis.call('HINCRBY', books_key, 'accepted', -missing)
    redis.call('HINCRBY', books_key, 'by_hand', -missing)
  end
  return counts, missing
end
