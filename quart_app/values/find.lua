-- A part of search.lua and find_verb.lua: finds the values that have a prime factor, in ascending order. The time of a search
-- depends on the lines that it returns and the expired records that it meets, never on the number of stored values.
-- Parameters:
--   index_key, alone_key, records_key   see store.py
--   prime, after                        the prime, and the value above which to search ("" for all), written as in the index
--   moment_text                         the moment (ms) at which a record must be unexpired
--   most, most_bytes                    the maximum numbers of values and of bytes to return
--   most_looked_at                      the maximum number of records to look at
-- Returns the value up to which the lines are complete, as digits, and the list of lines. If the value is "", no further lines
-- exist. A line is "<value>=<factors>", with the value as it is in the index and the factors as they are in the record.
local function find_values(index_key, alone_key, records_key, prime, after, moment_text, most, most_bytes, most_looked_at)
  most, most_bytes, most_looked_at = tonumber(most), tonumber(most_bytes), tonumber(most_looked_at)
  -- A step reads STEP members. A member contains two numbers of at most 4000 digits, so these are at most 800 KB. If the last
  -- member of a step has fewer than SHORT characters, the next step reads STEP_OF_SHORT members: fewer steps for short values.
  local STEP, SHORT, STEP_OF_SHORT = 100, 100, 1000
  local step_size = STEP
  local before_value = prime .. ':'
  -- ";" is the character after ":", so `beyond` sorts after all members of this prime and before those of the next one.
  local from, beyond = (after == '' and '[' or '(') .. before_value .. after, '(' .. prime .. ';'
  local sub, byte, find, match = string.sub, string.byte, string.find, string.match

  -- One value of a rare prime is in the hash `alone` instead of the index, and is put in its place among the members of the
  -- index. Lua compares texts by the server's collation. Every collation gives the same order here: either the letters before
  -- the numbers differ and decide, or both texts have the same number of digits. `alone_member` is that member, and false as
  -- soon as it is in its place.
  local alone_member = redis.call('HGET', alone_key, prime)
  if alone_member and alone_member > after then alone_member = before_value .. alone_member else alone_member = false end
  local function insert_alone_member(members, is_last_step)
    for i, member in ipairs(members) do
      if member >= alone_member then
        if member ~= alone_member then table.insert(members, i, alone_member) end
        alone_member = false
        return
      end
    end
    if is_last_step then
      members[#members + 1] = alone_member
      alone_member = false
    end
  end

  -- Returns the factors of a record "<request id> <expiry> <factors>", or nothing if the record has expired. Times have 13
  -- digits until the year 2286. Two times of the same length are compared as texts, which saves the conversion to numbers.
  local moment, has_13_digits = tonumber(moment_text), #moment_text == 13
  local function factors_of(record)
    local space = find(record, ' ', 1, true)
    local after_expiry = byte(record, space + 14)  -- what follows 13 digits: 32 (a space), or nothing if there are no factors
    if has_13_digits and (after_expiry == 32 or not after_expiry) then
      if sub(record, space + 1, space + 13) > moment_text then return sub(record, space + 15) end
    else
      local expiry, factors = match(record, '^(%d+) ?(.*)$', space + 1)
      if tonumber(expiry) > moment then return factors end
    end
  end

  local lines, count, total_bytes, looked_at = {}, 0, 0, 0
  local digit_count, prefix = 0, ''

  -- Adds a line for each of these members whose record has not expired. When the search has found enough lines, or has looked
  -- at enough records, returns the value that it looked at last. Returns nothing if the search must go on.
  -- `prefix` is kept for the next values, because neighbours mostly have the same number of digits.
  local prefix_start = #before_value + 1
  local function add_lines(members)
    local values = {}
    -- The digits of a value follow its prefix, which is one letter, or "z" (122) and four digits.
    for i = 1, #members do
      local member = members[i]
      values[i] = sub(member, prefix_start + (byte(member, prefix_start) == 122 and 5 or 1))
    end
    local records = redis.call('HMGET', records_key, unpack(values))
    for i = 1, #records do
      looked_at = looked_at + 1
      -- An expired record is skipped, even if the sweep has not removed it yet.
      local factors = records[i] and factors_of(records[i])
      if factors then
        local value = values[i]
        if #value ~= digit_count then
          digit_count = #value
          prefix = sub(members[i], prefix_start, digit_count < 26 and prefix_start or prefix_start + 4)
        end
        local line = prefix .. value .. '=' .. factors
        count, total_bytes = count + 1, total_bytes + #line
        lines[count] = line
      end
      if count >= most or total_bytes >= most_bytes or looked_at >= most_looked_at then return values[i] end
    end
  end

  local until_value
  repeat
    local read_count = math.min(step_size, most - count)
    local members = redis.call('ZRANGEBYLEX', index_key, from, beyond, 'LIMIT', 0, read_count)
    local is_last_step, last_member = #members < read_count, members[read_count]
    if alone_member then insert_alone_member(members, is_last_step) end
    until_value = #members > 0 and add_lines(members) or nil
    if not is_last_step then
      from = '(' .. last_member
      step_size = #from < SHORT and STEP_OF_SHORT or STEP
    end
  until is_last_step or until_value
  return until_value or '', lines
end
