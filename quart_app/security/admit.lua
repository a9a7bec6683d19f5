#!lua flags=allow-oom
-- Admit one attempt to use a password, and charge it as a failure until it is known to be right. The script may run when
-- memory is full, because its few small keys expire soon. So people can log in even then.
-- KEYS[1]  string   exists while this source is known for this account
-- KEYS[2]  counter  attempts of the source on accounts that do not know it
-- KEYS[3]  counter  attempts of the source on accounts that know it
-- KEYS[4]  counter  attempts on this account from this source, or from one known device
-- KEYS[5]  counter  attempts on this account from everybody who is not known
-- ARGV     length of a window in ms, bound of a source, bound of an account for one source or device,
--          bound of an account for everybody, 1 if the device is known
-- Returns {ms until the next attempt (0: admitted), 1 if a counter has reached its bound with this attempt,
--          numbers (in KEYS) of the counters that were charged}.
local known_key, source_key, known_source_key, pair_key, account_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local window_ms, source_bound, pair_bound, account_bound = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local is_known_device = ARGV[5] == '1'

-- The counters that this attempt is charged to, each as {key, bound, number of the key}.
local counters = { { pair_key, pair_bound, 4 } }
if not is_known_device then
  if redis.call('EXISTS', known_key) == 1 then
    table.insert(counters, { known_source_key, source_bound, 3 })
  else
    table.insert(counters, { source_key, source_bound, 2 })
    table.insert(counters, { account_key, account_bound, 5 })
  end
end

-- If one of them has reached its bound, the attempt is refused and charged to none.
local wait_ms = 0
for _, counter in ipairs(counters) do
  if (tonumber(redis.call('GET', counter[1])) or 0) >= counter[2] then
    -- At least 1, because 0 would mean that the attempt is admitted.
    wait_ms = math.max(wait_ms, redis.call('PTTL', counter[1]), 1)
  end
end
if wait_ms > 0 then return { wait_ms, 0 } end

local is_last = 0
-- The second element gets `is_last` below, and the numbers of the keys follow.
local reply = { 0, 0 }
for _, counter in ipairs(counters) do
  local attempt_count = redis.call('INCR', counter[1])
  if attempt_count == 1 then redis.call('PEXPIRE', counter[1], window_ms) end
  if attempt_count == counter[2] then is_last = 1 end
  table.insert(reply, counter[3])
end
reply[2] = is_last
return reply
