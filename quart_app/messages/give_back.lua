-- No provider has the message: the key may be used again. Answers 1; 0 where the claim is another's.
-- KEYS[1]  hash: the claim    ARGV[1]  owner
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
