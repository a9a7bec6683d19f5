#!lua flags=allow-oom
-- Deletes dead letters for good, all letters of a call in one step. The script also runs when memory is full (`allow-oom`),
-- because it frees memory.
-- KEYS: dead letters, audit log
-- ARGV: 1 to 6 as walk.lua says, 7 actor, 8 address of the actor, 9 maximum length of the audit log, then ids of letters
-- Returns {number of letters deleted, number of named letters that were gone, id to go on after or "", "" for no problem}
local dead_key, audit_key = KEYS[1], KEYS[2]

-- This part defines `parse_letter`, which the part walk.lua needs.
--[[ letter.lua ]]
-- This part defines `walk`.
--[[ walk.lua ]]
-- This part defines `record`.
--[[ record.lua ]]
local discarded_ids = {}
local function discard(id)
  redis.call('XDEL', dead_key, id)
  discarded_ids[#discarded_ids + 1] = id
end

-- In ARGV, the ids of named letters begin at 10, and the words for `record` at 7. `discard` never stops the walk.
local discarded_count, gone_count, after, problem = walk(10, discard)
if discarded_count + gone_count > 0 then
  record(7, 'dead letters discarded', discarded_ids, discarded_count .. ' discarded, ' .. gone_count .. ' gone', problem)
end
return {discarded_count, gone_count, after, problem}
