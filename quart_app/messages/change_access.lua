#!lua flags=allow-oom
-- An administrator grants or revokes paid access, or activates or deactivates an account. The script also runs when
-- Redis's memory is full, because it replaces values and adds few bytes.
-- KEYS[1]  hash    the account
-- KEYS[2]  hash    the account of the administrator who asks
-- KEYS[3]  set     ids of the active administrators
-- KEYS[4]  stream  the audit log
-- ARGV[1]  id of the account
-- ARGV[2]  id of the administrator who asks
-- ARGV[3]  is_active: '0', '1', or '' to keep it
-- ARGV[4]  paid_access: '0', '1', or '' to keep it
-- ARGV[5]  maximum length of the audit log; then the words of its new entry follow
-- Returns done | absent | forbidden | last (the only active administrator cannot be deactivated).
-- `_raise_if_refused` of users.py has an error for each refusal.
local account_key, actor_account_key, administrators_key, audit_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, actor_id, is_active, paid_access, audit_length = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local actor_flags = redis.call('HMGET', actor_account_key, 'is_admin', 'is_active')
if actor_flags[1] ~= '1' or actor_flags[2] ~= '1' then return 'forbidden' end
-- The set may lack an administrator of an older release, so the script adds each one that it meets.
redis.call('SADD', administrators_key, actor_id)
-- stored[1] is "1" for an administrator, and stored[2] for an active account; both are false if there is no account.
local stored = redis.call('HMGET', account_key, 'is_admin', 'is_active')
if not stored[2] then return 'absent' end

if is_active == '0' and stored[2] == '1' then
  if stored[1] == '1' then
    redis.call('SADD', administrators_key, id)
    if redis.call('SCARD', administrators_key) == 1 then return 'last' end
    redis.call('SREM', administrators_key, id)
  end
  -- Tokens of an earlier generation stay invalid when the account is activated again.
  redis.call('HINCRBY', account_key, 'generation', 1)
elseif is_active == '1' and stored[1] == '1' then
  redis.call('SADD', administrators_key, id)
end
if is_active ~= '' then redis.call('HSET', account_key, 'is_active', is_active) end
if paid_access ~= '' then redis.call('HSET', account_key, 'paid_access', paid_access) end
-- The words of the entry begin at ARGV[6].
redis.call('XADD', audit_key, 'MAXLEN', '~', audit_length, '*', unpack(ARGV, 6))
return 'done'
