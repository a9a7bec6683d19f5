-- Claim an idempotency key, or return the state of the claim that an earlier request made.
-- KEYS[1]  hash, PX  the claim: body, owner, state (claimed | sending | done), until_ms, answer
-- ARGV     fingerprint of the body, owner (the id of the message), may_take_ms (how long the owner may take for the
--          delivery), keep_ms (how long the claim is kept)
-- Returns {mine | other-body | done | busy | lost, the owner, the answer}, which `IdempotencyKeys.claim` reads. Busy: another
-- request holds the claim and still has time. Lost: that request died after it had begun to send.
local claim_key = KEYS[1]
local fingerprint, owner, may_take_ms, keep_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- stored[1] to stored[5] are the fields in this order; all are false if there is no claim. The field `body` has the
-- fingerprint, and `until_ms` is when the time of the owner ends.
local stored = redis.call('HMGET', claim_key, 'body', 'state', 'until_ms', 'owner', 'answer')

if stored[1] then
  if stored[1] ~= fingerprint then return { 'other-body' } end
  if stored[2] == 'done' then return { 'done', stored[4], stored[5] } end
  if tonumber(stored[3]) > now_ms then return { 'busy', stored[4] } end
  -- The owner is dead. If it had begun to send, nobody can know whether the message arrived.
  if stored[2] == 'sending' then return { 'lost', stored[4] } end
end

-- There is no claim, or its owner died before it began to send.
redis.call('HSET', claim_key, 'body', fingerprint, 'owner', owner, 'state', 'claimed',
  'until_ms', string.format('%.0f', now_ms + may_take_ms))
redis.call('PEXPIRE', claim_key, keep_ms)
return { 'mine', owner }
