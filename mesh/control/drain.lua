#!lua flags=allow-oom
-- Asks a replica to drain and leave. The replica's next renewal reads this demand, and deletes it. If there is no renewal in
-- time, the demand expires.
-- The script also runs when memory is full (`allow-oom`), so that an operator can act then. It stores little.
-- KEYS: audit log. The roster row is not in KEYS: EVALSHA needs the right to write all KEYS, and a replica may only
--       read the rows of others.
-- ARGV: replica, time until the demand expires (ms), actor, address of the actor, maximum length of the audit log,
--       database of the replica
-- Returns 1 if the replica was asked; 0 if the roster row of the database is of another replica, or the replica leaves
-- already
local audit_key, replica = KEYS[1], ARGV[1]
-- `pcall`: a row that somebody has overwritten with another type counts as missing.
local row = redis.pcall('HMGET', 'mesh:replica:' .. ARGV[6], 'replica', 'state')
if row[1] ~= replica or row[2] == 'draining' or row[2] == 'left' then return 0 end
redis.call('SET', 'mesh:drain:' .. replica, '1', 'PX', ARGV[2])
redis.call('XADD', audit_key, 'MAXLEN', '~', ARGV[5], '*', 'event', 'replica asked to drain', 'actor', ARGV[3],
  'source', ARGV[4], 'replica', replica)
return 1
