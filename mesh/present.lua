#!lua flags=allow-oom
-- Writes the presence of a client, and creates its reply stream if it is missing. Both keys expire unless this script runs
-- again in time.
-- The script also runs when memory is full (`allow-oom`), because a client may still read then. Both keys are small.
-- KEYS: presence of the client, reply stream
-- ARGV: host and process id of the client, time until both keys expire (ms)
local client_key, replies_key = KEYS[1], KEYS[2]
redis.call('SET', client_key, ARGV[1], 'PX', ARGV[2])
-- XLEN fails if somebody has overwritten the stream. Its replies are lost; the next ones need a stream.
if type(redis.pcall('XLEN', replies_key)) == 'table' then redis.call('DEL', replies_key) end
if redis.call('EXISTS', replies_key) == 0 then
  -- XADD creates the stream. Its entry is no reply, so it is deleted at once; the empty stream stays.
  redis.call('XDEL', replies_key, redis.call('XADD', replies_key, '*', 'op', 'open'))
end
redis.call('PEXPIRE', replies_key, ARGV[2])
