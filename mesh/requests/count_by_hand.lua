--[[ counts.lua ]]

-- Corrects the books for what no script has counted. Requests that somebody deleted with their stream (DEL, FLUSHALL) count
-- as lost. Requests that somebody wrote to a stream by hand (XADD) count as accepted, and also in the field `by_hand`.
-- Returns the corrected counts, in the order of counts.lua, and how many requests were lost; negative if some were written
-- by hand.
local function corrected(books_key, first)
  local counts = counts_of(books_key, first)
  local missing = counts[1]
  for i = 2, 8 do missing = missing - counts[i] end
  -- These commands fail if somebody has overwritten the books. They count again when the key is deleted.
  if missing > 0 then
    counts[6] = counts[6] + missing
    redis.pcall('HINCRBY', books_key, 'lost', missing)
  elseif missing < 0 then
    counts[1] = counts[1] - missing
    redis.pcall('HINCRBY', books_key, 'accepted', -missing)
    redis.pcall('HINCRBY', books_key, 'by_hand', -missing)
  end
  return counts, missing
end
