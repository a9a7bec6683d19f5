#!lua flags=allow-oom
-- Acknowledges and deletes events in one step: an event that is only acknowledged would stay on its stream forever.
-- The script also runs when memory is full (`allow-oom`), because it frees memory.
-- KEYS: stream
-- ARGV: group, id, ...
local stream, group = KEYS[1], ARGV[1]
redis.call('XACK', stream, group, unpack(ARGV, 2))
redis.call('XDEL', stream, unpack(ARGV, 2))
