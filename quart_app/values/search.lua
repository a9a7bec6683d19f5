#!lua flags=allow-oom,no-writes
-- Finds the values that have a prime as a factor, for those who do not ask by a request of this release.
-- KEYS: index, alone, records
-- ARGV: the other words of find.lua
-- Returns {until, text}: what find.lua returns, with ";" between the lines
--[[ find.lua ]]
local until_value, lines = find_values(KEYS[1], KEYS[2], KEYS[3], unpack(ARGV))
return {until_value, table.concat(lines, ';')}
