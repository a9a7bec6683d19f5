-- Corrects the books for what no script has counted: what was deleted with its stream (DEL, FLUSHALL) is lost; what was
-- written to a stream by hand (XADD) is accepted, and counted in `by_hand` as well.
-- Returns the counts {accepted, answered, expired, cancelled, dead, lost, in flight, waiting for their time}
local function corrected(books_key, first, last)
  local in_flight, waiting = 0, redis.call('ZCARD', 'mesh:later')
  for k = first, last do in_flight = in_flight + redis.call('XLEN', KEYS[k]) end
  local counts = redis.call('HMGET', books_key, 'accepted', 'answered', 'expired', 'cancelled', 'dead', 'lost')
  local missing = -in_flight - waiting
  for i = 1, 6 do
    counts[i] = tonumber(counts[i] or '0')
    missing = missing + (i == 1 and counts[i] or -counts[i])
  end
  counts[7], counts[8] = in_flight, waiting
  if missing > 0 then
    counts[6] = redis.call('HINCRBY', books_key, 'lost', missing)
  elseif missing < 0 then
    counts[1] = redis.call('HINCRBY', books_key, 'accepted', -missing)
    redis.call('HINCRBY', books_key, 'by_hand', -missing)
  end
  return counts, missing
end
