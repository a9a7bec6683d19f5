#!lua flags=allow-oom
-- Deletes the entries that are in a snapshot, except the last of them. A replica that restores from the snapshot looks for
-- this last entry, to see that the snapshot belongs to this log.
-- KEYS: log
-- ARGV: identity, number and id of the snapshot's position
-- Returns how many entries were deleted
local log, identity, number, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local at = redis.call('XRANGE', log, id, id)[1]
if not at then return 0 end
local is = {}
for i = 1, #at[2], 2 do is[at[2][i]] = at[2][i + 1] end
if is.log ~= identity or is.number ~= number then return 0 end
return redis.call('XTRIM', log, 'MINID', '=', id)
