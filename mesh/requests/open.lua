#!lua flags=allow-oom
-- Creates missing streams and groups, and corrects the books.
-- The script also runs when memory is full (`allow-oom`), so that a replica can join then. It stores little.
-- KEYS: books, stream, ...   (all possible request streams)
-- ARGV: how many of the streams, from the first, to create
-- Returns the correction: how many requests were lost; or, as a negative number, how many were written by hand

-- This part defines `correct_books`.
--[[ count_by_hand.lua ]]
for k = 2, 1 + tonumber(ARGV[1]) do
  -- XGROUP fails if the group is there already.
  pcall(redis.call, 'XGROUP', 'CREATE', KEYS[k], 'workers', '0', 'MKSTREAM')
end
-- 2: the request streams begin at KEYS[2].
local _, uncounted = correct_books(KEYS[1], 2)
return uncounted
