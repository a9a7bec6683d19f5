#!lua flags=allow-oom,no-writes
-- Reads the books, and the numbers of requests that are in flight and that wait, at one moment.
-- KEYS: books, stream, ...   (all possible request streams)
-- Returns the counts of counts.lua

-- This part defines `counts_of`.
--[[ counts.lua ]]
return counts_of(KEYS[1], 2)  -- 2: the request streams begin at KEYS[2]
