#!lua flags=allow-oom
-- Takes a request whose try failed from its stream, and lets it wait for the next one. It keeps the time at which it was
-- sent, and its deadline.
-- KEYS: stream, later
-- ARGV: id, consumer, pause (ms), tries so far, error of the last one
-- Returns when it is due (ms), or 0 if this consumer does not have it
local stream, later_key = KEYS[1], KEYS[2]
local id, consumer, pause, tries, reason = unpack(ARGV)
local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
if pending.err or #pending == 0 then return 0 end
local entry = redis.call('XRANGE', stream, id, id)[1]
redis.call('XACK', stream, 'workers', id)
if not entry then return 0 end
local fields = {unpack(entry[2], 1, 4000)}
local named = {first = id}
for i = 1, #fields, 2 do named[fields[i]] = fields[i + 1] end
-- The parts of one request have one key, so the first id tells them apart. A request without a caller has a key of its own.
local key = named.request or ''
if (named.reply_to or '') ~= '' or key == '' then key = key .. '@' .. named.first end
local time = redis.call('TIME')
local due = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + pause)
local entry_key = later_key .. ':' .. key
redis.call('HSET', entry_key, unpack(fields))
redis.call('HSET', entry_key, 'to', string.match(stream, '[^:]+$'), 'first', named.first, 'try', tries, 'error', reason)
redis.call('ZADD', later_key, due, key)
redis.call('XDEL', stream, id)
return tonumber(due)
