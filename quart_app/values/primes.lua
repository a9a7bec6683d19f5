#!lua flags=no-writes
-- Reads one part of the primes of the stored values. The parts come from `alone` first, then from the index. A prime that is
-- stored all the time from the first part to the last is in at least one part.
-- KEYS: index, alone   (see store.py)
-- ARGV: where to begin (what the part before returned, "" at first), about how many primes to read
-- The words for where a part begins: "h:" and a cursor of HSCAN (of the hash `alone`); or "z:" and the last prime that was read
-- from the index. "z:" without a prime is the start of the index.
-- Returns {where the next part begins ("" if there is none), list of primes, written as in the index}
local index_key, alone_key, count = KEYS[1], KEYS[2], tonumber(ARGV[2])
local source, position = string.match(ARGV[1], '^(%a):(.*)$')
local prefixed_primes = {}
if source ~= 'z' then
  local answer = redis.call('HSCAN', alone_key, position or '0', 'COUNT', count)
  for i = 1, #answer[2], 2 do prefixed_primes[#prefixed_primes + 1] = answer[2][i] end
  return {answer[1] == '0' and 'z:' or 'h:' .. answer[1], prefixed_primes}
end
-- Each read finds one member of the next prime, and skips all other values of the prime before: ";" sorts directly after ":".
local from = position == '' and '-' or '(' .. position .. ';'
for i = 1, count do
  local member = redis.call('ZRANGEBYLEX', index_key, from, '+', 'LIMIT', 0, 1)[1]
  if not member then return {'', prefixed_primes} end
  prefixed_primes[i] = string.match(member, '^[^:]*')
  from = '(' .. prefixed_primes[i] .. ';'
end
return {'z:' .. prefixed_primes[count], prefixed_primes}
