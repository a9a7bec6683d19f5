#!lua flags=allow-oom
-- Cancels a request that has not ended: removes it from mesh:later or from its stream. If a replica works on the request,
-- its commit is refused from now on.
-- The script also runs when memory is full (`allow-oom`), because it frees memory.
-- KEYS: later, books, key that remembers this attempt, stream, ...   (all possible request streams)
-- ARGV: name of the request, maximum number of entries to look at on one stream, how long to
--       remember this attempt (ms)
-- Returns 1 if the request was removed, 0 if it was not found: it has ended, or too many other entries are before it
local books_key, attempt_key = KEYS[2], KEYS[3]
local request_name, most_searched, remembered_ms = unpack(ARGV)
-- If the attempt is remembered, an earlier run of this script has removed the request, but its answer was lost.
if redis.call('EXISTS', attempt_key) == 1 then return 1 end

-- This part defines `append`, which the part options.lua needs.
--[[ ../requests/append.lua ]]

-- This part defines `make_options`.
--[[ ../requests/options.lua ]]

local options = make_options()
-- The answer to the calls that share the request's idempotency key. It comes from no replica, and names no entry.
local CANCELLED = {status = 'cancelled', body = '{"detail":"the request was cancelled"}', from = '', asked = ''}
-- Ends the removed request: frees its idempotency key and its place in a lane, counts it as cancelled, and remembers the
-- attempt.
local function end_removed(flat)
  options.ended(options.named(flat), CANCELLED)
  -- `pcall`: if somebody has overwritten the books, only this count is missing.
  redis.pcall('HINCRBY', books_key, 'cancelled', 1)
  redis.call('SET', attempt_key, request_name, 'PX', remembered_ms)
  return 1
end

-- This part defines `take_waiting`.
--[[ left.lua ]]
local flat = take_waiting(request_name)
if flat then return end_removed(flat) end
for k = 4, #KEYS do  -- the request streams
  -- The answer is an error, and has no entries, if somebody has overwritten the stream.
  for _, entry in ipairs(redis.pcall('XRANGE', KEYS[k], '-', '+', 'COUNT', most_searched)) do
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'request' and entry[2][i + 1] == request_name then
        -- XACK fails if the stream has no group. Then there is nothing to acknowledge.
        redis.pcall('XACK', KEYS[k], 'workers', entry[1])
        redis.call('XDEL', KEYS[k], entry[1])
        return end_removed(entry[2])
      end
    end
  end
end
return 0
