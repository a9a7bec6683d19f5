#!lua flags=allow-oom,no-writes
-- Reads a log at one moment: both ends, and the entries from a position on.
-- KEYS: the stream of the log
-- ARGV: stream id to read from (inclusive), maximum number of entries
-- Returns {now in ms, oldest entry or {}, newest entry or {}, entries}
local log, first_id, most = KEYS[1], ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)
local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
local entries = redis.call('XRANGE', log, first_id, '+', 'COUNT', most)
return {now, oldest[1] or {}, newest[1] or {}, entries}
