#!lua flags=allow-oom
-- Claims entries that their consumer no longer keeps alive, and removes consumers of processes that are gone.
-- KEYS: stream
-- ARGV: consumer, least idle ms, most entries
-- Returns {id, deliveries including this one, field, value, ...} for each entry claimed
local stream, consumer, idle, most = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local taken = {}
for _, row in ipairs(redis.call('XPENDING', stream, 'workers', 'IDLE', idle, '-', '+', most)) do
  local id, owner, deliveries = row[1], row[2], row[4]
  -- This consumer works on its own entries or recovers them; to claim one would count a delivery that does not happen.
  local claimed = owner ~= consumer and redis.call('XCLAIM', stream, 'workers', consumer, idle, id) or {}
  if claimed[1] then
    local entry = {id, deliveries + 1}
    for _, word in ipairs(claimed[1][2]) do entry[#entry + 1] = word end
    taken[#taken + 1] = entry
  end
end
-- A consumer without pending entries that was silent for a minute belongs to a process that is gone.
for _, facts in ipairs(redis.call('XINFO', 'CONSUMERS', stream, 'workers')) do
  local name, pending, silent = facts[2], facts[4], facts[6]
  if pending == 0 and name ~= consumer and silent > 60000 then
    redis.call('XGROUP', 'DELCONSUMER', stream, 'workers', name)
  end
end
return taken
