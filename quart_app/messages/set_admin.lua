#!lua flags=allow-oom
-- Make an account an administrator, or end that. Only the command line runs this. It may run when memory is full,
-- because it adds only a few bytes.
-- KEYS[1]  hash    the account
-- KEYS[2]  set     ids of the active administrators
-- KEYS[3]  stream  the audit log
-- ARGV     id of the account, is_admin ('0' or '1'), length of the audit log, then the words of its entry
-- Returns done | absent | unchanged | last (the only active administrator stays one).
-- `_raise_if_refused` of users.py has an error for each refusal.
local account_key, administrators_key, audit_key = KEYS[1], KEYS[2], KEYS[3]
local id, is_admin, audit_length = ARGV[1], ARGV[2], ARGV[3]

-- stored[1] is "1" for an administrator, and stored[2] for an active account; both are false if there is no account.
local stored = redis.call('HMGET', account_key, 'is_admin', 'is_active')
if not stored[1] then return 'absent' end
if stored[1] == is_admin then return 'unchanged' end
if stored[2] == '1' then
  if is_admin == '1' then
    redis.call('SADD', administrators_key, id)
  else
    -- The set may lack `id`, so the script counts the others, and adds `id` again if there are none.
    redis.call('SREM', administrators_key, id)
    if redis.call('SCARD', administrators_key) == 0 then
      redis.call('SADD', administrators_key, id)
      return 'last'
    end
  end
end
redis.call('HSET', account_key, 'is_admin', is_admin)
-- The words of the entry begin at ARGV[4].
redis.call('XADD', audit_key, 'MAXLEN', '~', audit_length, '*', unpack(ARGV, 4))
return 'done'
