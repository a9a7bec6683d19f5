-- Verbs of transactions that write and remove records together with their index, so that both always agree (see store.py).
--   put-values, records key, index key, alone key, filters, value, record, ...
--       Write these records.
--   remove-values, records key, index key, alone key, value, record, ...
--       Remove these records. The transaction expects each of them, so the commit has found that they are there.
-- The keys are those that store.py describes. `filters` are the filters that get the primes: "<key> <bits> <below> <key> ...".
-- A filter has `bits` bits, and all primes below `below` (see the verb `mark` of commit_verbs.lua).
-- A part of commit_verbs.lua. From there it uses MOST_UNPACKED, `verbs` and `mark_numbers`; from the other parts of commit.lua
-- it uses `tx`, `frees`, `go_to` and `bus`.

-- When memory is full, the commit counts what this verb removes (see commit_verbs.lua).
frees['remove-values'] = true

-- Primes with at least this number of digits are rare. The number has to be that of RARE_DIGITS in primes.py.
local RARE_DIGITS = 6
-- By number of digits: the prefix that a number has in the index, so that numbers sort by their size. It is a letter for up to
-- 25 digits (96 is the byte before "a"), and "z" and four digits for more. `with_prefix` of store.py writes the same prefixes.
local prefixes = {}
local function add_prefix(length)
  prefixes[length] = length < 26 and string.char(96 + length) or string.format('z%04d', length)
  return prefixes[length]
end

-- Reads the records at tx[first] to tx[last]: a value, its record, the next value, and so on. A rare prime has at least
-- RARE_DIGITS digits, a common one has fewer. `score` is given if the members are for ZADD. Returns four lists:
--   the members of the index for the common primes, each after the score if it is given
--   the rare primes, and in a list of the same length their values; both as the index writes numbers
--   the digits of all primes: a common prime once, a rare one once for each value
local function read_entries(first, last, score)
  local members, rare_primes, rare_values, primes, prefixed_by_prime = {}, {}, {}, {}, {}
  local member_count, rare_count, prime_count = 0, 0, 0
  for k = first, last, 2 do
    local value, previous_prime = tx[k], nil
    value = (prefixes[#value] or add_prefix(#value)) .. value
    local after_prime = ':' .. value
    -- A record is "<id> <expiry> <prime> <prime> ...", so the first match is the expiry. A prime that occurs twice may be
    -- written twice, one directly after the other.
    local next_number = string.gmatch(tx[k + 1], ' (%d+)')
    next_number()
    for prime in next_number do
      if prime ~= previous_prime then
        previous_prime = prime
        local prefixed, length = prefixed_by_prime[prime], #prime
        if not prefixed then
          prefixed = (prefixes[length] or add_prefix(length)) .. prime
          prime_count = prime_count + 1
          primes[prime_count] = prime
        end
        if length >= RARE_DIGITS then
          rare_count = rare_count + 1
          rare_primes[rare_count], rare_values[rare_count] = prefixed, value
        else
          prefixed_by_prime[prime] = prefixed
          if score then
            member_count = member_count + 1
            members[member_count] = score
          end
          member_count = member_count + 1
          members[member_count] = prefixed .. after_prime
        end
      end
    end
  end
  return members, rare_primes, rare_values, primes
end

-- Writes each rare prime and its value into the hash `alone` if the prime has no value there. If it has another value, the
-- pair is added to `members`, which the caller writes into the index. Redis gets at most MOST_UNPACKED words at once, because
-- Lua's `unpack` takes no more than some thousands.
local function put_rare(alone_key, rare_primes, rare_values, members)
  for begin = 1, #rare_primes, MOST_UNPACKED do
    local till = math.min(begin + MOST_UNPACKED - 1, #rare_primes)
    local stored = redis.call('HMGET', alone_key, unpack(rare_primes, begin, till))
    local new_values, fields, field_count, member_count = {}, {}, 0, #members
    for i = begin, till do
      local prime, value = rare_primes[i], rare_values[i]
      local value_there = stored[i - begin + 1] or new_values[prime]
      if not value_there then
        new_values[prime] = value
        fields[field_count + 1], fields[field_count + 2] = prime, value
        field_count = field_count + 2
      elseif value_there ~= value then
        members[member_count + 1], members[member_count + 2] = '0', prime .. ':' .. value
        member_count = member_count + 2
      end
    end
    if field_count > 0 then redis.call('HSET', alone_key, unpack(fields)) end
  end
end

local function put_values(first, last)
  local records_key, index_key, alone_key, filters = unpack(tx, first + 1, first + 4)
  redis.call('HSET', records_key, unpack(tx, first + 5, last))
  local members, rare_primes, rare_values, primes = read_entries(first + 5, last, '0')
  put_rare(alone_key, rare_primes, rare_values, members)
  -- MOST_UNPACKED is even, so a score and its member stay together.
  for begin = 1, #members, MOST_UNPACKED do
    redis.call('ZADD', index_key, unpack(members, begin, math.min(begin + MOST_UNPACKED - 1, #members)))
  end
  for filter_key, bits, below in string.gmatch(filters, '(%S+) (%d+) (%d+)') do
    -- The filters are in the bus database. Before its next write, the commit chooses the database of that write.
    go_to(bus)
    mark_numbers(filter_key, tonumber(bits), tonumber(below), primes, 1, #primes)
  end
end

local function remove_values(first, last)
  local records_key, index_key, alone_key = unpack(tx, first + 1, first + 3)
  local members, rare_primes, rare_values = read_entries(first + 4, last)
  for begin = 1, #rare_primes, MOST_UNPACKED do
    local till = math.min(begin + MOST_UNPACKED - 1, #rare_primes)
    local stored, fields = redis.call('HMGET', alone_key, unpack(rare_primes, begin, till)), {}
    for i = begin, till do
      if stored[i - begin + 1] == rare_values[i] then fields[#fields + 1] = rare_primes[i] end
      -- The pair may be in the hash and in the index. It came into the index while the hash had another value of the prime.
      -- After the removal of that value, a second write put the pair into the hash, too.
      members[#members + 1] = rare_primes[i] .. ':' .. rare_values[i]
    end
    if #fields > 0 then redis.call('HDEL', alone_key, unpack(fields)) end
  end
  for begin = 1, #members, MOST_UNPACKED do
    redis.call('ZREM', index_key, unpack(members, begin, math.min(begin + MOST_UNPACKED - 1, #members)))
  end
  local removed = {}
  for k = first + 4, last, 2 do removed[#removed + 1] = tx[k] end
  redis.call('HDEL', records_key, unpack(removed))
end

verbs['put-values'], verbs['remove-values'] = put_values, remove_values
