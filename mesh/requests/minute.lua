#!lua flags=allow-oom
-- Corrects the books for what somebody changed by hand (see count_by_hand.lua), and adds them to the stream of minutes once a
-- minute. The first replica that runs this script in a minute adds the entry.
-- The script also runs when memory is full (`allow-oom`), so that no minute is missing. It stores little.
-- KEYS: books, minutes, stream, ...   (all possible request streams)
-- ARGV: number of entries that are kept, one a minute
-- Returns 1 if this call has added the entry, 0 if the entry of this minute was there
local books_key, minutes_key = KEYS[1], KEYS[2]

-- This part defines `correct_books`.
--[[ count_by_hand.lua ]]
-- 3: the request streams begin at KEYS[3].
local counts = correct_books(books_key, 3)
local now = redis.call('TIME')[1]  -- in seconds
local id = string.format('%.0f-0', (now - now % 60) * 1000)
-- XADD refuses an id that is not higher than the last id of the stream. So a second entry for the same minute is refused.
local added = redis.pcall('XADD', minutes_key, 'MAXLEN', '~', ARGV[1], id, 'accepted', counts[1], 'answered', counts[2],
  'expired', counts[3], 'cancelled', counts[4], 'dead', counts[5], 'lost', counts[6], 'in_flight', counts[7],
  'waiting', counts[8])
return type(added) == 'string' and 1 or 0
