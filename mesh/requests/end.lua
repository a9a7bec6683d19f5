#!lua flags=allow-oom
-- Removes requests before they have an effect: their callers no longer wait, or their deadlines have passed. Each request is
-- counted once, even if several replicas try to remove it.
-- The script also runs when memory is full (`allow-oom`), because it frees memory.
-- KEYS: books
-- ARGV: JSON list of {stream, id, outcome, about_options}. The outcome is "expired" or "cancelled"; `about_options` is:
--         false                             the request has no options
--         true                              it has options
--         {limit, name}                     it waits or has waited for its limit, so its caller does not know its stream and
--                                           id: they are looked up here
--         {op, idempotency key, name}       a call with this key leaves: remove the request only if no other call waits
-- Returns how many of the requests were removed
local books_key, ended_count = KEYS[1], 0

-- This part defines `append`, which the part options.lua needs.
--[[ append.lua ]]

-- This part defines `make_options`.
--[[ options.lua ]]

-- This part defines `options` (empty at first) and `end_early`.
--[[ expire.lua ]]

-- This part defines `take_waiting`.
--[[ ../later/left.lua ]]

-- Returns the stream and the id of a request whose caller knows only its limit and name, or its idempotency key. Returns
-- nothing if no key says where the request is, or if it must go on for another caller.
local function location_of(about_options)
  options = options or make_options()
  if #about_options == 2 then return options.limits().find(unpack(about_options)) end
  return options.once.leave(unpack(about_options))
end

-- Removes a request that waits in mesh:later. Only `location_of` finds such a request, so `options` is there.
local function end_waiting(name, outcome)
  local flat = take_waiting(name)
  if not flat then return end
  -- `pcall`: if somebody has overwritten the books, only this count is missing.
  redis.pcall('HINCRBY', books_key, outcome, 1)
  ended_count = ended_count + 1
  options.ended(options.named(flat))
end

-- Removes a request that is on a stream. Its entry is read only for its options, before it is deleted.
local function end_entry(stream, id, outcome, has_options)
  -- If somebody has overwritten the key of the stream, each command answers with an error. Then its requests are lost.
  local entry = has_options and redis.pcall('XRANGE', stream, id, id)[1]
  if redis.pcall('XDEL', stream, id) ~= 1 then return end
  -- The stream may have no group: then there is nothing to acknowledge.
  redis.pcall('XACK', stream, 'workers', id)
  -- `pcall`: if somebody has overwritten the books, only this count is missing.
  redis.pcall('HINCRBY', books_key, outcome, 1)
  ended_count = ended_count + 1
  if entry then end_early(stream, id, entry[2], outcome) end
end

-- `item` is one item of the list in ARGV.
for _, item in ipairs(cjson.decode(ARGV[1])) do
  local stream, id, outcome, about_options = unpack(item)
  if type(about_options) == 'table' then stream, id = location_of(about_options) end
  if stream == 'mesh:later' then
    end_waiting(id, outcome)
  elseif stream then
    end_entry(stream, id, outcome, about_options)
  end
end
return ended_count
