#!lua flags=allow-oom
-- Removes requests that are past their deadline from all streams, also from streams that no replica reads. Frees the places
-- in lanes whose requests no longer exist.
-- The script also runs when memory is full (`allow-oom`), because it frees memory.
-- KEYS: books, stream, ...
-- ARGV: how long after its deadline a request is removed (ms), maximum number of entries to look at on one stream
-- Returns how many were removed. The plain variant returns -1 if there is a request to remove or a lane; then the caller has
-- to run the complete script
local books_key, grace_ms, most_entries, removed_count = KEYS[1], tonumber(ARGV[1]), ARGV[2], 0
-- How many lanes one sweep searches for places to free, and how many places it looks at in all. A place takes about
-- 2 µs, so this blocks the server for at most about 2 ms. Lanes are chosen at random, so later sweeps reach the others.
local MOST_LANES, MOST_PLACES = 100, 1000

-- The plain variant of this script (see scripts.py) lacks the next part, up to "End of what few need". So
-- `is_complete` stays false there.
local is_complete = false
-- What few sweeps need.
-- This part defines `append`, which the part options.lua needs.
--[[ append.lua ]]

-- This part defines `make_options`.
--[[ options.lua ]]

-- This part defines `options` (empty at first) and `end_early`.
--[[ expire.lua ]]

is_complete = true
-- End of what few need.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for k = 2, #KEYS do  -- the request streams
  -- The answer is an error, and has no entries, if somebody has overwritten the stream.
  for _, entry in ipairs(redis.pcall('XRANGE', KEYS[k], '-', '+', 'COUNT', most_entries)) do
    local flat, deadline = entry[2], 0
    for i = 1, #flat, 2 do
      if flat[i] == 'deadline' then deadline = tonumber(flat[i + 1]) or 0 end
    end
    if deadline > 0 and deadline + grace_ms < now then
      if not is_complete then return -1 end
      -- The stream may have no group: then there is nothing to acknowledge.
      pcall(redis.call, 'XACK', KEYS[k], 'workers', entry[1])
      redis.call('XDEL', KEYS[k], entry[1])
      end_early(KEYS[k], entry[1], flat, 'expired')
      removed_count = removed_count + 1
    end
  end
end
if redis.call('EXISTS', 'mesh:lanes') == 1 then
  if not is_complete then return -1 end
  -- expire.lua declares `options`, and has made them if it ended a request.
  options = options or make_options()
  options.limits().repair(MOST_LANES, MOST_PLACES)
end
-- HINCRBY fails if somebody has overwritten the books. The requests are removed all the same.
if removed_count > 0 then redis.pcall('HINCRBY', books_key, 'expired', removed_count) end
return removed_count
