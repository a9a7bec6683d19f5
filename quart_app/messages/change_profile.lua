#!lua flags=allow-oom
-- Change the address or the password of an account. The script also runs when Redis's memory is full, because it
-- replaces values and adds few bytes.
-- KEYS[1]  hash    the account
-- KEYS[2]  string  the id of the account that has the present address
-- KEYS[3]  string  the id of the account that has the new address
-- KEYS[4]  hash    the first administrator: id, email
-- ARGV     id, generation that the caller has seen, new address or '', hash of the new password or ''
-- Returns done | taken | changed (by somebody else since the caller read it).
local account_key, old_email_key, new_email_key, first_admin_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, generation, email, password_hash = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if redis.call('HGET', account_key, 'generation') ~= generation then return 'changed' end
if email ~= '' and new_email_key ~= old_email_key then
  if redis.call('EXISTS', new_email_key) == 1 then return 'taken' end
  -- first[1] is the address that is reserved for the first administrator, and first[2] the id of that account.
  local first = redis.call('HMGET', first_admin_key, 'email', 'id')
  if first[1] == email and first[2] ~= id then return 'taken' end
end
if email ~= '' then
  redis.call('DEL', old_email_key)
  redis.call('SET', new_email_key, id)
  redis.call('HSET', account_key, 'email', email)
end
if password_hash ~= '' then redis.call('HSET', account_key, 'password', password_hash) end
-- Sessions of an earlier generation are over.
redis.call('HINCRBY', account_key, 'generation', 1)
return 'done'
