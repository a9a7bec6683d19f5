#!lua flags=allow-oom
-- Free the key: no provider has the message.
-- The script also runs when memory is full (`allow-oom`), because it frees memory.
-- KEYS[1]  hash  the claim
-- ARGV[1]  the owner
-- Returns 1, or 0 if another request owns the claim.
local claim_key = KEYS[1]
if redis.call('HGET', claim_key, 'owner') ~= ARGV[1] then return 0 end
return redis.call('DEL', claim_key)
