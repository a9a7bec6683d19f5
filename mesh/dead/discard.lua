#!lua flags=allow-oom
-- Drops dead letters for good, all of a call in one step. Runs when memory is full, too: it frees memory.
-- KEYS: dead letters, audit log
-- ARGV: 1 to 6 as walk.lua says, 7 actor, 8 source, 9 length of the audit log, then ids
-- Returns {number discarded, number gone, where to go on, why it stopped}
local dead_key, audit_key = KEYS[1], KEYS[2]

--[[ letter.lua ]]
--[[ walk.lua ]]
--[[ record.lua ]]
local ids = {}
local function discard(id)
  redis.call('XDEL', dead_key, id)
  ids[#ids + 1] = id
end

local discarded, gone, after, wrong = walk(10, discard)
if discarded + gone > 0 then
  record(7, 'dead letters discarded', ids, discarded .. ' discarded, ' .. gone .. ' gone', wrong)
end
return {discarded, gone, after, wrong}
