#!lua flags=allow-oom,no-writes
-- Counts the requests on a stream by operation, the oldest first, until one of two bounds is reached.
-- KEYS: stream
-- ARGV: most entries, most bytes of bodies
-- Returns {1 if all entries were counted or else 0, and then for each operation: op, how many wait, how many are worked on}
local stream, most, bytes = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
-- Entries are read in portions: their bodies may be large, and `bytes` is checked after each portion.
local AT_ONCE = 16
if redis.call('EXISTS', stream) == 0 or redis.call('TYPE', stream).ok ~= 'stream' then return {1} end

local in_hand = {}
local pending = redis.pcall('XPENDING', stream, 'workers', '-', '+', most)
if not pending.err then
  for _, each in ipairs(pending) do in_hand[each[1]] = true end
end

local waits, runs, ops, first, complete = {}, {}, {}, '-', 0
while most > 0 and bytes > 0 do
  local entries = redis.call('XRANGE', stream, first, '+', 'COUNT', math.min(AT_ONCE, most))
  if #entries == 0 then
    complete = 1
    break
  end
  for _, entry in ipairs(entries) do
    local op = ''
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'op' then op = entry[2][i + 1] end
      if entry[2][i] == 'body' then bytes = bytes - #entry[2][i + 1] end
    end
    if not waits[op] then
      waits[op], runs[op] = 0, 0
      ops[#ops + 1] = op
    end
    local counts = in_hand[entry[1]] and runs or waits
    counts[op] = counts[op] + 1
    first = '(' .. entry[1]
  end
  most = most - #entries
end
local found = {complete}
for _, op in ipairs(ops) do
  found[#found + 1], found[#found + 2], found[#found + 3] = op, waits[op], runs[op]
end
return found
