-- Create the administrator that the settings name, once in the life of the store, and reserve its address.
-- KEYS[1]  hash    the first administrator: id, email
-- KEYS[2]  string  the id of the account that has the address
-- KEYS[3]  hash    the account
-- KEYS[4]  set     ids of the active administrators
-- KEYS[5]  stream  the audit log
-- ARGV     id, address, length of the audit log, number of words of its entry, those words,
--          then the fields of the account. Without fields the address is only reserved: nobody can register it.
-- Returns created | adopted | reserved | taken (by an account that is no administrator) | recorded (done before).
local first_admin_key, email_key, account_key, administrators_key, audit_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
-- The words of the entry begin at ARGV[5], and the fields of the account at ARGV[5 + word_count].
local id, email, audit_length, word_count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

if redis.call('HEXISTS', first_admin_key, 'id') == 1 then return 'recorded' end
local owner_id = redis.call('GET', email_key)
local outcome = 'created'
if owner_id then
  -- The present owner of the address is adopted only if it is an administrator already: an older release made it one,
  -- and recorded no id. The script never promotes an account.
  if owner_id ~= id or redis.call('HGET', account_key, 'is_admin') ~= '1' then return 'taken' end
  outcome = 'adopted'
end
redis.call('HSET', first_admin_key, 'email', email)
if outcome == 'created' then
  -- ARGV has no fields of an account.
  if #ARGV == 4 + word_count then return 'reserved' end
  redis.call('SET', email_key, id)
  redis.call('HSET', account_key, unpack(ARGV, 5 + word_count))
end
redis.call('HSET', first_admin_key, 'id', id)
-- An adopted administrator may have been deactivated.
if redis.call('HGET', account_key, 'is_active') == '1' then redis.call('SADD', administrators_key, id) end
redis.call('XADD', audit_key, 'MAXLEN', '~', audit_length, '*', unpack(ARGV, 5, 4 + word_count))
return outcome
