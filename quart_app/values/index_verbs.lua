-- Verbs of transactions that write records with their index, so that these always agree (see store.py).
--   put-values, records, index, alone, filters, value, record, ...    write these records
--   remove-values, records, index, alone, value, record, ...          remove these records, which are there
-- `filters` are those that get the primes: "<key> <bits> <below> <key> ...", as `mark` of commit_verbs.lua has it.
-- It stands inside commit_verbs.lua, and uses `PASSED`, `verbs` and `mark_numbers` of that file, `frees`, `go_to` and `bus`.

frees['remove-values'] = true

local RARE_DIGITS = 6
-- By number of digits: what stands before such a number in the index, as `ordered` of store.py says.
local prefixes = {}
local function prefix(length)
  prefixes[length] = length < 26 and string.char(96 + length) or string.format('z%04d', length)
  return prefixes[length]
end

-- Returns the members of the index for the common primes of some records, each after the score, if there is one; the rare
-- primes, and the value of each, as the index has them; and the digits of all primes, common ones once.
local function entries_of(first, last, score)
  local members, names, values, primes, name_of = {}, {}, {}, {}, {}
  local m, n, p = 0, 0, 0
  for k = first, last, 2 do
    local value, before = tx[k], nil
    value = (prefixes[#value] or prefix(#value)) .. value
    local tail = ':' .. value
    -- Behind the id of the record the expiry comes first. A prime may stand there several times, one after the other.
    local next_number = string.gmatch(tx[k + 1], ' (%d+)')
    next_number()
    for prime in next_number do
      if prime ~= before then
        before = prime
        local name, length = name_of[prime], #prime
        if not name then
          name = (prefixes[length] or prefix(length)) .. prime
          p = p + 1
          primes[p] = prime
        end
        if length >= RARE_DIGITS then
          n = n + 1
          names[n], values[n] = name, value
        else
          name_of[prime] = name
          if score then
            m = m + 1
            members[m] = score
          end
          m = m + 1
          members[m] = name .. tail
        end
      end
    end
  end
  return members, names, values, primes
end

-- Writes the first value of a rare prime into the hash, and adds any other one to the members of the index.
local function put_rare(alone, names, values, members)
  for begin = 1, #names, PASSED do
    local till = math.min(begin + PASSED - 1, #names)
    local before = redis.call('HMGET', alone, unpack(names, begin, till))
    local now, fields, n, m = {}, {}, 0, #members
    for i = begin, till do
      local name, value = names[i], values[i]
      local other = before[i - begin + 1] or now[name]
      if not other then
        now[name] = value
        fields[n + 1], fields[n + 2] = name, value
        n = n + 2
      elseif other ~= value then
        members[m + 1], members[m + 2] = '0', name .. ':' .. value
        m = m + 2
      end
    end
    if n > 0 then redis.call('HSET', alone, unpack(fields)) end
  end
end

local function put_values(first, last)
  local records, index, alone, filters = unpack(tx, first + 1, first + 4)
  redis.call('HSET', records, unpack(tx, first + 5, last))
  local members, names, values, primes = entries_of(first + 5, last, '0')
  put_rare(alone, names, values, members)
  for begin = 1, #members, PASSED do
    redis.call('ZADD', index, unpack(members, begin, math.min(begin + PASSED - 1, #members)))
  end
  for key, bits, below in string.gmatch(filters, '(%S+) (%d+) (%d+)') do
    go_to(bus)
    mark_numbers(key, tonumber(bits), tonumber(below), primes, 1, #primes)
  end
end

local function remove_values(first, last)
  local records, index, alone = unpack(tx, first + 1, first + 3)
  local members, names, values = entries_of(first + 4, last)
  for begin = 1, #names, PASSED do
    local till = math.min(begin + PASSED - 1, #names)
    local before, fields = redis.call('HMGET', alone, unpack(names, begin, till)), {}
    for i = begin, till do
      if before[i - begin + 1] == values[i] then fields[#fields + 1] = names[i] end
      -- A value that was written twice may be in the hash and among the members.
      members[#members + 1] = names[i] .. ':' .. values[i]
    end
    if #fields > 0 then redis.call('HDEL', alone, unpack(fields)) end
  end
  for begin = 1, #members, PASSED do
    redis.call('ZREM', index, unpack(members, begin, math.min(begin + PASSED - 1, #members)))
  end
  local removed = {}
  for k = first + 4, last, 2 do removed[#removed + 1] = tx[k] end
  redis.call('HDEL', records, unpack(removed))
end

verbs['put-values'], verbs['remove-values'] = put_values, remove_values
