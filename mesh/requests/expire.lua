-- Ends the options of a request that was removed without an effect. A part of end.lua and sweep.lua, after append.lua and
-- options.lua. It uses `append`, `make_options`, and `books_key` of these scripts. Other calls with the same idempotency key
-- may have later deadlines than the call that made the request. Then the request is appended again, as a new entry with the
-- latest of these deadlines.

-- What make_options() returns; nil until a request with options is removed. The scripts with this part use it, too.
local options
local function end_early(stream, id, flat, outcome)
  options = options or make_options()
  local fields = options.named(flat)
  if not options.has(fields) then return end
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  local deadline = outcome == 'expired' and fields.once and options.once.latest(fields, now_ms)
  if not deadline then return options.ended(fields) end
  -- Lua's `unpack` fails at about 8000 words. An entry with more than 4000 was written by hand, and is cut.
  local words = {unpack(flat, 1, 4000)}
  for i = 1, #words, 2 do
    if words[i] == 'deadline' then words[i + 1] = deadline end
  end
  -- `first` keeps the id of the first entry of the request: the time at which the mesh accepted it.
  if not fields.first then words[#words + 1], words[#words + 2] = 'first', id end
  local new_id = append(stream, unpack(words))
  -- An error: the stream takes no entry, so the request ends for all its calls.
  if type(new_id) == 'table' then return options.ended(fields) end
  -- end.lua or sweep.lua counts the removed entry as expired, so the new entry counts as accepted.
  -- `pcall`: if somebody has overwritten the books, only this count is missing.
  redis.pcall('HINCRBY', books_key, 'accepted', 1)
  options.moved(fields, stream, new_id, deadline ~= '0' and deadline - now_ms or nil)
end
