#!lua flags=allow-oom,no-writes
-- Finds the values that have a prime as a factor, ascending, as text. The time it takes depends on what it returns and on
-- how many expired records it meets, never on how many values are stored.
-- KEYS: index, alone, records
-- ARGV: prime; the value above which to search, or "" (both as the index has them); moment in ms; the most values and
--       bytes to return and the most records to look at
-- Returns {until, text}: everything up to the value `until`, or everything where it is "". The text is
--       "<value>=<factors>;<value>=<factors>", with values as the index has them and factors as records have them.
local index_key, alone_key, records_key = KEYS[1], KEYS[2], KEYS[3]
local prime, after, moment, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local most_bytes, most_looked_at = tonumber(ARGV[5]), tonumber(ARGV[6])
-- A member has a prime and a value of at most 4000 digits each, so a step of 100 reads at most 800 KB. A step over short
-- members may have more of them.
local STEP, SHORT, STEP_OF_SHORT = 100, 100, 1000
local size = STEP
local from, beyond = (after == '' and '[' or '(') .. prime .. ':' .. after, '(' .. prime .. ';'
local sub, byte, find, match = string.sub, string.byte, string.find, string.match

-- One value of a rare prime is not in the index. It is put among those that are. The order does not depend on the
-- server's collation: a letter decides, and where the letters are equal, both texts have the same number of digits.
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

-- Returns the factors of a record; nothing if it has expired. Times have 13 digits until the year 2286, and texts of
-- the same length are compared without making numbers of them.
local moment_text, is_usual = ARGV[3], #ARGV[3] == 13
local function factors_of(record)
  local at = find(record, ' ', 1, true)
  local behind = byte(record, at + 14)
  if is_usual and (behind == 32 or not behind) then
    if sub(record, at + 1, at + 13) > moment_text then return sub(record, at + 15) end
  else
    local expiry, factors = match(record, '^(%d+) ?(.*)$', at + 1)
    if tonumber(expiry) > moment then return factors end
  end
end

local lines, count, bytes, looked_at = {}, 0, 0, 0

-- Adds a line for each value that has not expired. Returns the value at which the search ends because it has found or
-- looked at enough; nothing if it can go on.
local function add(texts)
  local values = {}
  -- The digits follow one letter, or "z" and four digits.
  for i = 1, #texts do values[i] = sub(texts[i], byte(texts[i]) == 122 and 6 or 2) end
  local records = redis.call('HMGET', records_key, unpack(values))
  for i = 1, #records do
    looked_at = looked_at + 1
    -- A record that has expired counts as gone, although the sweep has not removed it yet.
    local factors = records[i] and factors_of(records[i])
    if factors then
      local line = texts[i] .. '=' .. factors
      count, bytes = count + 1, bytes + #line
      lines[count] = line
    end
    if count >= most or bytes >= most_bytes or looked_at >= most_looked_at then return values[i] end
  end
end

local until_value
repeat
  local step = math.min(size, most - count)
  local members = redis.call('ZRANGEBYLEX', index_key, from, beyond, 'LIMIT', 0, step)
  local complete, texts = #members < step, {}
  for i = 1, #members do texts[i] = sub(members[i], #prime + 2) end
  if alone then put_in_place(texts, complete) end
  until_value = #texts > 0 and add(texts) or nil
  if not complete then
    from = '(' .. members[step]
    size = #from < SHORT and STEP_OF_SHORT or STEP
  end
until complete or until_value
return {until_value or '', table.concat(lines, ';')}
