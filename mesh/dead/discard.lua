#!lua flags=allow-oom
-- Deletes dead letters for good, all letters of a call in one step. Also runs when memory is full, because it frees memory.
-- KEYS: dead letters, audit log
-- ARGV: 1 to 6 as walk.lua says, 7 actor, 8 address of the actor, 9 most entries of the audit log, then ids of letters
-- Returns {number of letters deleted, number of named letters that were gone, id to go on after or "", why it stopped or ""}
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
