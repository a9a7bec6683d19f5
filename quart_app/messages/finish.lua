-- Keep the answer for all who ask again. Answers 1; 0 where the claim is another's.
-- KEYS[1]  hash: the claim    ARGV  owner, answer, keep_ms
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'done', 'answer', ARGV[2])
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[3]))
return 1
