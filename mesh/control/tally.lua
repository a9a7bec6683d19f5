#!lua flags=allow-oom,no-writes
-- Counts the requests on a stream by operation, the oldest first, until one of two bounds is reached.
-- KEYS: stream
-- ARGV: maximum number of entries, maximum number of bytes of bodies; mesh/control/operations.py gives both
-- Returns {1 if all entries were counted or else 0, and then for each operation: op, how many wait, how many are
--          worked on}
local stream, entries_left, bytes_left = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
-- Entries are read in portions: their bodies may be large, and `bytes_left` is checked after each portion. A larger portion
-- may go further beyond that bound; a smaller one needs more commands.
local PORTION = 16
if redis.call('EXISTS', stream) == 0 or redis.call('TYPE', stream).ok ~= 'stream' then return {1} end

-- By id: true if a replica works on the entry.
local is_in_hand = {}
-- `pcall`: XPENDING fails for a stream without a group. No replica works on an entry of such a stream.
local pending = redis.pcall('XPENDING', stream, 'workers', '-', '+', entries_left)
if not pending.err then
  for _, delivered in ipairs(pending) do is_in_hand[delivered[1]] = true end
end

-- `waits` and `runs` have their counts by operation; `ops` lists the operations.
local waits, runs, ops, from_id, is_complete = {}, {}, {}, '-', 0
while entries_left > 0 and bytes_left > 0 do
  local entries = redis.call('XRANGE', stream, from_id, '+', 'COUNT', math.min(PORTION, entries_left))
  if #entries == 0 then
    is_complete = 1
    break
  end
  for _, entry in ipairs(entries) do
    local op = ''
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'op' then op = entry[2][i + 1] end
      if entry[2][i] == 'body' then bytes_left = bytes_left - #entry[2][i + 1] end
    end
    if not waits[op] then
      waits[op], runs[op] = 0, 0
      ops[#ops + 1] = op
    end
    local counts = is_in_hand[entry[1]] and runs or waits
    counts[op] = counts[op] + 1
    from_id = '(' .. entry[1]
  end
  entries_left = entries_left - #entries
end
local answer = {is_complete}
for _, op in ipairs(ops) do
  answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = op, waits[op], runs[op]
end
return answer
