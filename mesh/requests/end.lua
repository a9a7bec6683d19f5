#!lua flags=allow-oom
-- Removes requests without an effect: their callers no longer wait, or their deadlines have passed. Each counts once,
-- however many replicas try.
-- KEYS: books
-- ARGV: JSON list of {stream, id, outcome}; outcome is expired or cancelled. A request with options has a fourth item:
--       true, or where one of the callers of an idempotency key leaves, {op, idempotency key, request}: then it is
--       removed if nobody else waits for it
-- Returns how many still existed
local books_key, ended = KEYS[1], 0

--[[ options.lua ]]

--[[ append.lua ]]

--[[ expire.lua ]]

for _, e in ipairs(cjson.decode(ARGV[1])) do
  local stream, id, outcome, option = unpack(e)
  if type(option) == 'table' then
    options = options or make_options()
    stream, id = options.once.leave(unpack(option))
  end
  local entry = stream and option and redis.call('XRANGE', stream, id, id)[1]
  if stream and redis.call('XDEL', stream, id) == 1 then
    pcall(redis.call, 'XACK', stream, 'workers', id)
    redis.call('HINCRBY', books_key, outcome, 1)
    ended = ended + 1
    if entry then end_early(stream, id, entry[2], outcome) end
  end
end
return ended
