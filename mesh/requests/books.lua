#!lua flags=allow-oom,no-writes
-- Reads the books, and the numbers of requests in flight and waiting, at one moment.
-- KEYS: books, stream, ...   (all possible request streams)
-- Returns what counts.lua returns

--[[ counts.lua ]]
return counts_of(KEYS[1], 2)
