-- Counts requests. A part of books.lua, and of count_by_hand.lua.

-- Returns how many elements a key holds, as XLEN or ZCARD counts them; 0 if somebody has overwritten it with another type.
local function size_of(command, key)
  local count = redis.pcall(command, key)
  return type(count) == 'number' and count or 0
end

-- Returns how many requests are {accepted, answered, expired, cancelled, dead, lost, in flight, waiting} at this moment. The
-- request streams are KEYS[first] and all later keys. What somebody has overwritten counts 0.
local function counts_of(books_key, first)
  local found = redis.pcall('HMGET', books_key, 'accepted', 'answered', 'expired', 'cancelled', 'dead', 'lost')
  local counts, in_flight = {}, 0
  -- 1 to 6 come from the books; 7 and 8 are counted now.
  for i = 1, 6 do counts[i] = tonumber(found[i] or 0) or 0 end
  for k = first, #KEYS do in_flight = in_flight + size_of('XLEN', KEYS[k]) end
  counts[7], counts[8] = in_flight, size_of('ZCARD', 'mesh:later')
  return counts
end
