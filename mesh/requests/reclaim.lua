#!lua flags=allow-oom
-- Takes over the entries of consumers that no longer keep them alive.
-- KEYS: stream
-- ARGV: consumer, least idle ms, most entries
-- Returns {id, deliveries with this one, field, value, ...} for each
local stream, consumer, idle, most = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local taken = {}
for _, row in ipairs(redis.call('XPENDING', stream, 'workers', 'IDLE', idle, '-', '+', most)) do
  local id, owner, deliveries = row[1], row[2], row[4]
  -- What this consumer has itself, it works on or recovers; claiming it would count a delivery that does not happen.
  local claimed = owner ~= consumer and redis.call('XCLAIM', stream, 'workers', consumer, idle, id) or {}
  if claimed[1] then
    local entry = {id, deliveries + 1}
    for _, word in ipairs(claimed[1][2]) do entry[#entry + 1] = word end
    taken[#taken + 1] = entry
  end
end
-- A consumer that has nothing pending and has been silent for a minute belongs to a process that is gone.
for _, facts in ipairs(redis.call('XINFO', 'CONSUMERS', stream, 'workers')) do
  local name, pending, silent = facts[2], facts[4], facts[6]
  if pending == 0 and name ~= consumer and silent > 60000 then
    redis.call('XGROUP', 'DELCONSUMER', stream, 'workers', name)
  end
end
return taken
