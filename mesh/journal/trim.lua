#!lua flags=allow-oom
-- Deletes the entries that are in a snapshot, except the last of them. A replica that restores from the snapshot looks for
-- this last entry, to see that the snapshot belongs to this log.
-- The script also runs when memory is full (`allow-oom`), because it frees memory.
-- KEYS: the stream of the log
-- ARGV: identity, number and id of the snapshot's position
-- Returns how many entries were deleted
local log, identity, number, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local entry = redis.call('XRANGE', log, id, id)[1]
if not entry then return 0 end
local fields = {}
for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
if fields.log ~= identity or fields.number ~= number then return 0 end
return redis.call('XTRIM', log, 'MINID', '=', id)
