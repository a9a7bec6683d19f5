#!lua flags=allow-oom
-- Keep the answer for later requests with the key.
-- The script also runs when memory is full (`allow-oom`), because the provider was asked already. Without the answer, later
-- requests with the key would get an error.
-- KEYS[1]  hash  the claim
-- ARGV     owner, answer, keep_ms
-- Returns 1, or 0 if another request owns the claim.
local claim_key = KEYS[1]
if redis.call('HGET', claim_key, 'owner') ~= ARGV[1] then return 0 end
redis.call('HSET', claim_key, 'state', 'done', 'answer', ARGV[2])
redis.call('PEXPIRE', claim_key, tonumber(ARGV[3]))
return 1
