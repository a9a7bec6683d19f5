-- Returns how many requests are {accepted, answered, expired, cancelled, dead, lost, in flight, waiting} at this moment. The
-- request streams are KEYS[first] and all later keys.
local function counts_of(books_key, first)
  local counts = redis.call('HMGET', books_key, 'accepted', 'answered', 'expired', 'cancelled', 'dead', 'lost')
  local in_flight = 0
  for i = 1, 6 do counts[i] = tonumber(counts[i] or '0') end
  for k = first, #KEYS do in_flight = in_flight + redis.call('XLEN', KEYS[k]) end
  counts[7], counts[8] = in_flight, redis.call('ZCARD', 'mesh:later')
  return counts
end
