#!lua flags=allow-oom,no-writes
-- Finds the values that have a prime as a factor, ascending. The time it takes depends on what it returns and on how
-- many expired records it meets, never on how many values are stored.
-- KEYS: index, alone, records
-- ARGV: prime; the value above which to search, or "" (both as the index has them); moment in ms; the most values and
--       bytes to return and the most records to look at
-- Returns {until, value, record, ...}: everything up to the value `until`, or everything where it is ""
local index_key, alone_key, records_key = KEYS[1], KEYS[2], KEYS[3]
local prime, after, moment, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local most_bytes, most_looked_at = tonumber(ARGV[5]), tonumber(ARGV[6])
-- Members are as long as their values, so a step of this many reads at most 400 KB.
local STEP = 100
local from, beyond = (after == '' and '[' or '(') .. prime .. ':' .. after, '(' .. prime .. ';'

-- One value of a rare prime is not in the index. It is put among those that are. The order does not depend on the
-- server's collation: a letter decides, and where the letters are equal, both texts have as many digits.
local alone = redis.call('HGET', alone_key, prime)
if alone and alone <= after then alone = false end
local function put_in_place(texts, complete)
  for i, text in ipairs(texts) do
    if text >= alone then
      if text ~= alone then table.insert(texts, i, alone) end
      alone = false
      return
    end
  end
  if complete then
    texts[#texts + 1] = alone
    alone = false
  end
end

local function number(text)
  return string.match(text, '^[a-y](%d+)$') or string.match(text, '^z%d%d%d%d(%d+)$')
end

local found, count, bytes, looked_at = {''}, 0, 0, 0
local function is_full() return count >= most or bytes >= most_bytes or looked_at >= most_looked_at end

-- The value at which this search ends because it has found enough; nothing if it can go on.
local function add(texts)
  local values = {}
  for i, text in ipairs(texts) do values[i] = number(text) end
  for i, record in ipairs(redis.call('HMGET', records_key, unpack(values))) do
    looked_at = looked_at + 1
    -- The sweep has not reached a record that has expired: it counts as gone.
    local expiry = record and tonumber(string.match(record, '^%S+ (%d+)'))
    if expiry and expiry > moment then
      found[#found + 1] = values[i]
      found[#found + 1] = record
      count = count + 1
      bytes = bytes + #values[i] + #record
    end
    if is_full() then return values[i] end
  end
end

repeat
  local step = math.min(STEP, most - count)
  local members = redis.call('ZRANGEBYLEX', index_key, from, beyond, 'LIMIT', 0, step)
  local complete = #members < step
  local texts = {}
  for i, member in ipairs(members) do texts[i] = string.sub(member, #prime + 2) end
  if alone then put_in_place(texts, complete) end
  local until_value = #texts > 0 and add(texts)
  if until_value then
    found[1] = until_value
    break
  end
  if not complete then from = '(' .. members[step] end
until complete
return found
