#!lua flags=allow-oom
-- Removes requests without an effect: their callers no longer wait, or their deadlines have passed. Each counts once,
-- however many replicas try.
-- KEYS: books
-- ARGV: JSON list of {stream, id, outcome}; outcome is expired or cancelled
-- Returns how many still existed
local books_key, ended = KEYS[1], 0
for _, e in ipairs(cjson.decode(ARGV[1])) do
  if redis.call('XDEL', e[1], e[2]) == 1 then
    pcall(redis.call, 'XACK', e[1], 'workers', e[2])
    redis.call('HINCRBY', books_key, e[3], 1)
    ended = ended + 1
  end
end
return ended
