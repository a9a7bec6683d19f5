#!lua flags=allow-oom
-- Takes over work that nobody kept alive.
-- KEYS: stream
-- ARGV: consumer, least idle ms, most entries
-- Returns {id, deliveries with this one, field, value, ...} for each
local stream, consumer, idle, most = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local taken = {}
for _, p in ipairs(redis.call('XPENDING', stream, 'workers', 'IDLE', idle, '-', '+', most)) do
  local id, deliveries = p[1], p[4]
  local claimed = redis.call('XCLAIM', stream, 'workers', consumer, idle, id)
  if claimed[1] then
    local entry = {id, deliveries + 1}
    for _, v in ipairs(claimed[1][2]) do entry[#entry + 1] = v end
    taken[#taken + 1] = entry
  end
end
-- A consumer without work that has been silent for long belongs to a process that is gone.
for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', stream, 'workers')) do
  local name, pending, silent = c[2], c[4], c[6]
  if pending == 0 and name ~= consumer and silent > 60000 then
    redis.call('XGROUP', 'DELCONSUMER', stream, 'workers', name)
  end
end
return taken
