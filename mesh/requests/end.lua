#!lua flags=allow-oom
-- Ends requests without an effect, because no caller waits or the deadline has passed; each at most once.
-- KEYS: books
-- ARGV: JSON list of {stream, id, outcome}; outcome is expired or cancelled
-- Returns the number of requests that were still there
local books_key, ended = KEYS[1], 0
for _, e in ipairs(cjson.decode(ARGV[1])) do
  if redis.call('XDEL', e[1], e[2]) == 1 then
    pcall(redis.call, 'XACK', e[1], 'workers', e[2])
    redis.call('HINCRBY', books_key, e[3], 1)
    ended = ended + 1
  end
end
return ended
