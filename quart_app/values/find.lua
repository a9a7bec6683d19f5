-- A part of search.lua and find_verb.lua: finds the values that have a prime factor, in ascending order. The time of a search
-- depends on the lines that it returns and the expired records that it meets, never on the number of stored values.
-- Parameters: the keys index, alone and records (see store.py); the prime; the value above which to search, or "" for all; the
-- moment in ms; the most values and bytes to return; the most records to look at. Prime and value are written as in the index.
-- Returns the value up to which the lines are complete, as digits, and the list of lines. If the value is "", no further lines
-- exist. A line is "<value>=<factors>", with the value as it is in the index and the factors as they are in the record.
local function find_values(index_key, alone_key, records_key, prime, after, moment_text, most, most_bytes, most_looked_at)
  most, most_bytes, most_looked_at = tonumber(most), tonumber(most_bytes), tonumber(most_looked_at)
  -- A step reads STEP members. A member contains two numbers of at most 4000 digits, so these are at most 800 KB. If the last
  -- member of a step has fewer than SHORT characters, the next step reads STEP_OF_SHORT members.
  local STEP, SHORT, STEP_OF_SHORT = 100, 100, 1000
  local size = STEP
  local before_value = prime .. ':'
  -- ";" is the character after ":", so `beyond` sorts after all members of this prime and before those of the next one.
  local from, beyond = (after == '' and '[' or '(') .. before_value .. after, '(' .. prime .. ';'
  local sub, byte, find, match = string.sub, string.byte, string.find, string.match

  -- One value of a rare prime is in the hash `alone` instead of the index, and is put in its place among the members of the
  -- index. Lua compares texts by the server's collation. Every collation gives the same order here: either the letters before
  -- the numbers differ and decide, or both texts have the same number of digits.
  local alone = redis.call('HGET', alone_key, prime)
  if alone and alone > after then alone = before_value .. alone else alone = false end
  local function put_in_place(members, complete)
    for i, member in ipairs(members) do
      if member >= alone then
        if member ~= alone then table.insert(members, i, alone) end
        alone = false
        return
      end
    end
    if complete then
      members[#members + 1] = alone
      alone = false
    end
  end

  -- Returns the factors of a record, or nothing if the record has expired. Times have 13 digits until the year 2286. Two times
  -- of the same length are compared as texts, which saves the conversion to numbers.
  local moment, is_usual = tonumber(moment_text), #moment_text == 13
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
  local length, letters = 0, ''

  -- Adds a line for each of these members whose record has not expired. When the search has found enough lines, or
  -- has looked at enough records, returns the value that it looked at last. Returns nothing if the search must go on.
  local first = #before_value + 1
  local function add(members)
    local values = {}
    -- The digits of a value follow its prefix, which is one letter, or "z" and four digits.
    for i = 1, #members do
      local member = members[i]
      values[i] = sub(member, first + (byte(member, first) == 122 and 5 or 1))
    end
    local records = redis.call('HMGET', records_key, unpack(values))
    for i = 1, #records do
      looked_at = looked_at + 1
      -- An expired record is skipped, even if the sweep has not removed it yet.
      local factors = records[i] and factors_of(records[i])
      if factors then
        local value = values[i]
        if #value ~= length then
          length = #value
          letters = sub(members[i], first, length < 26 and first or first + 4)
        end
        local line = letters .. value .. '=' .. factors
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
    local complete, last = #members < step, members[step]
    if alone then put_in_place(members, complete) end
    until_value = #members > 0 and add(members) or nil
    if not complete then
      from = '(' .. last
      size = #from < SHORT and STEP_OF_SHORT or STEP
    end
  until complete or until_value
  return until_value or '', lines
end
