--[[ counts.lua ]]

-- Corrects the books for what no script has counted: what was deleted with its stream (DEL, FLUSHALL) is lost; what was
-- written to a stream by hand (XADD) is accepted, and counted in `by_hand` as well.
-- Returns the corrected counts, as counts.lua names them, and how many requests the books had missed.
local function corrected(books_key, first)
  local counts = counts_of(books_key, first)
  local missing = counts[1]
  for i = 2, 8 do missing = missing - counts[i] end
  if missing > 0 then
    counts[6] = redis.call('HINCRBY', books_key, 'lost', missing)
  elseif missing < 0 then
    counts[1] = redis.call('HINCRBY', books_key, 'accepted', -missing)
    redis.call('HINCRBY', books_key, 'by_hand', -missing)
  end
  return counts, missing
end
