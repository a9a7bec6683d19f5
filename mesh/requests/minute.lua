#!lua flags=allow-oom
-- Corrects the books, and keeps them once a minute. The first replica that asks within a minute adds its entry.
-- KEYS: books, minutes, stream, ...   (all possible request streams)
-- ARGV: minutes that are kept
-- Returns 1 if this call has added the entry, 0 if it was there
local books_key, minutes_key = KEYS[1], KEYS[2]

--[[ count_by_hand.lua ]]
local counts = corrected(books_key, 3)
local now = redis.call('TIME')[1]
local id = string.format('%.0f-0', (now - now % 60) * 1000)
-- An id that is not higher than the last one is refused.
local added = redis.pcall('XADD', minutes_key, 'MAXLEN', '~', ARGV[1], id, 'accepted', counts[1], 'answered', counts[2],
  'expired', counts[3], 'cancelled', counts[4], 'dead', counts[5], 'lost', counts[6], 'in_flight', counts[7],
  'waiting', counts[8])
return type(added) == 'string' and 1 or 0
