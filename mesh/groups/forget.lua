#!lua flags=allow-oom
-- Deletes the consumers of dead processes. A consumer with pending entries stays until others have claimed them, because its
-- deletion would drop them.
-- The script also runs when memory is full (`allow-oom`), because it frees memory.
-- KEYS: stream
-- ARGV: group, this consumer, how long a consumer must have been idle (ms)
-- Returns how many consumers were deleted
local stream, group, this_consumer, silence_ms, deleted_count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), 0
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local facts = {}
  for i = 1, #row, 2 do facts[row[i]] = row[i + 1] end
  if facts.name ~= this_consumer and facts.pending == 0 and facts.idle >= silence_ms then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, facts.name)
    deleted_count = deleted_count + 1
  end
end
return deleted_count
