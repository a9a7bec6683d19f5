-- This part defines `counts_of`.
--[[ counts.lua ]]

-- Corrects the books for what no script has counted. A part of open.lua and minute.lua. Requests that somebody deleted with
-- their stream (DEL, FLUSHALL) count as lost. Requests that somebody wrote to a stream by hand (XADD) count as accepted, and
-- also in the field `by_hand`. Returns the corrected counts, in the order of counts.lua, and how many requests were lost;
-- negative if some were written by hand. The request streams are KEYS[first] and all later keys.
local function correct_books(books_key, first)
  local counts = counts_of(books_key, first)
  local uncounted = counts[1]
  -- In the order of counts.lua: 1 is accepted, 6 is lost, and accepted must be the sum of 2 to 8.
  for i = 2, 8 do uncounted = uncounted - counts[i] end
  -- These commands fail if somebody has overwritten the books. They count again when the key is deleted.
  if uncounted > 0 then
    counts[6] = counts[6] + uncounted
    redis.pcall('HINCRBY', books_key, 'lost', uncounted)
  elseif uncounted < 0 then
    counts[1] = counts[1] - uncounted
    redis.pcall('HINCRBY', books_key, 'accepted', -uncounted)
    redis.pcall('HINCRBY', books_key, 'by_hand', -uncounted)
  end
  return counts, uncounted
end
