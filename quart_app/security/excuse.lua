#!lua flags=allow-oom
-- Take back the charges of an admitted attempt to use a password: the password was right, or was not compared. The script
-- may run when memory is full, because it adds one small key at most.
-- KEYS     as for admit.lua: [1] exists while the source is known for the account; [2] to [5] are counters of attempts, [4]
--          of this source or device on this account
-- ARGV     how long the source is known from now on, in ms (0: the password was not compared), then the numbers of the
--          keys that admit.lua charged
local known_key, pair_key = KEYS[1], KEYS[4]

for position = 2, #ARGV do  -- the numbers of the charged keys
  local counter_key = KEYS[tonumber(ARGV[position])]
  -- If the window of a counter is over, DECR would make the key anew, without an expiry.
  if (tonumber(redis.call('GET', counter_key)) or 0) > 0 then redis.call('DECR', counter_key) end
end
if ARGV[1] ~= '0' then
  -- The right password also forgives earlier wrong ones from the same source or device on this account.
  redis.call('DEL', pair_key)
  redis.call('SET', known_key, '1', 'PX', ARGV[1])
end
return 1
