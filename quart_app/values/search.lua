#!lua flags=allow-oom,no-writes
-- Finds the values that have a prime factor, for a replica of an earlier release, whose handler has to get a list (see
-- `as_flat_list` in store.py). For a replica of this release, find_verb.lua makes the search in the commit.
-- KEYS: index, alone, records   (see store.py)
-- ARGV: the parameters of find.lua that follow the keys
-- Returns what find.lua returns: {value or "", lines as one text with ";" between them}
--[[ find.lua ]]
local until_value, lines = find_values(KEYS[1], KEYS[2], KEYS[3], unpack(ARGV))
return {until_value, table.concat(lines, ';')}
