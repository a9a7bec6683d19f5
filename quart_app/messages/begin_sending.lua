-- Say that the message may be at a provider from now on. Answers 1; 0 where the claim is another's, or too old.
-- KEYS[1]  hash: the claim    ARGV[1]  owner
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local stored = redis.call('HMGET', KEYS[1], 'owner', 'state', 'until_ms')
if stored[1] ~= ARGV[1] or stored[2] == 'done' or tonumber(stored[3]) <= now then return 0 end
redis.call('HSET', KEYS[1], 'state', 'sending')
return 1
