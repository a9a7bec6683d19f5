#!lua flags=allow-oom
-- Record that a provider may have the message from now on.
-- The script also runs when memory is full (`allow-oom`), because it changes one field.
-- KEYS[1]  hash  the claim
-- ARGV[1]  the owner
-- Returns 1, or 0 if another request owns the claim or the claim is too old: then nothing may be sent.
local claim_key = KEYS[1]
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- stored[1] is the owner, stored[2] the state, and stored[3] until when the owner may work (ms). An owner that is
-- sending already may begin again: after the free provider it tries the paid one.
local stored = redis.call('HMGET', claim_key, 'owner', 'state', 'until_ms')
if stored[1] ~= ARGV[1] or stored[2] == 'done' or tonumber(stored[3]) <= now_ms then return 0 end
redis.call('HSET', claim_key, 'state', 'sending')
return 1
