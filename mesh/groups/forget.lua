#!lua flags=allow-oom
-- Deletes the consumers of dead processes. A consumer with pending entries stays until others have claimed them, because its
-- deletion would drop them.
-- KEYS: stream
-- ARGV: group, this consumer, how long a consumer must have been idle (ms)
-- Returns how many consumers were deleted
local stream, group, own, silence, forgotten = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), 0
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local about = {}
  for i = 1, #row, 2 do about[row[i]] = row[i + 1] end
  if about.name ~= own and about.pending == 0 and about.idle >= silence then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, about.name)
    forgotten = forgotten + 1
  end
end
return forgotten
