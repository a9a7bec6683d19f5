#!lua flags=allow-oom
-- Replace the hash of a password by another one of the same password, unless the account has changed.
-- The script also runs when memory is full (`allow-oom`), because it replaces a value.
-- KEYS[1]  hash  the account
-- ARGV     the hash that the caller has compared, the new hash
local account_key, old_hash, new_hash = KEYS[1], ARGV[1], ARGV[2]
if redis.call('HGET', account_key, 'password') == old_hash then redis.call('HSET', account_key, 'password', new_hash) end
