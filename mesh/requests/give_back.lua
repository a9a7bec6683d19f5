#!lua flags=allow-oom
-- Leaves a request pending that finds no room. Nobody keeps it alive then, so after a while a consumer takes it over. This
-- delivery does not count.
-- KEYS: stream
-- ARGV: consumer, id
-- Returns 1; 0 when the entry is gone or another consumer has it
local stream, consumer, id = KEYS[1], ARGV[1], ARGV[2]
local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
if pending.err or #pending == 0 then return 0 end
redis.call('XCLAIM', stream, 'workers', consumer, 0, id, 'RETRYCOUNT', math.max(pending[1][4] - 1, 0), 'JUSTID')
return 1
