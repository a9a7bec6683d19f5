#!lua flags=allow-oom
-- Asks a replica to drain and leave. It reads that with its next renewal; the request expires when it does not.
-- KEYS: audit log   (not the row: a replica may read the rows of others, and EVALSHA asks for the right to write its KEYS)
-- ARGV: replica, how long the request holds (ms), actor, source, length of the audit log, database of the replica
-- Returns 1 if the replica was asked; 0 if this row is not of the replica, or it leaves already
local audit_key, replica = KEYS[1], ARGV[1]
local row = redis.call('HMGET', 'mesh:replica:' .. ARGV[6], 'replica', 'state')
if row[1] ~= replica or row[2] == 'draining' or row[2] == 'left' then return 0 end
redis.call('SET', 'mesh:drain:' .. replica, '1', 'PX', ARGV[2])
redis.call('XADD', audit_key, 'MAXLEN', '~', ARGV[5], '*', 'event', 'replica asked to drain', 'actor', ARGV[3], 'source',
  ARGV[4], 'replica', replica)
return 1
