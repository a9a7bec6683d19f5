-- Create an account, unless another account has the address or the address is reserved for the first administrator.
-- KEYS[1]  string  the id of the account that has the address
-- KEYS[2]  hash    the new account
-- KEYS[3]  hash    the first administrator: id, email
-- ARGV     id, address, then the fields of the account
-- Returns done | taken.
local email_key, account_key, first_admin_key = KEYS[1], KEYS[2], KEYS[3]
local id, email = ARGV[1], ARGV[2]

if redis.call('EXISTS', email_key) == 1 then return 'taken' end
if redis.call('HGET', first_admin_key, 'email') == email then return 'taken' end
redis.call('SET', email_key, id)
redis.call('HSET', account_key, unpack(ARGV, 3))  -- from ARGV[3] on: the fields of the account
return 'done'
