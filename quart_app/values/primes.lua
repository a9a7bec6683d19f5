#!lua flags=no-writes
-- Reads the primes of the index, part by part. A prime that is in the index during all parts is read at least once.
-- KEYS: index, alone
-- ARGV: where to begin ("" at first), about how many to read
-- Returns {where to go on, or "" at the end, primes as the index has them}
local index_key, alone_key, count = KEYS[1], KEYS[2], tonumber(ARGV[2])
local kind, at = string.match(ARGV[1], '^(%a):(.*)$')
local names = {}
if kind ~= 'z' then
  local answer = redis.call('HSCAN', alone_key, at or '0', 'COUNT', count)
  for i = 1, #answer[2], 2 do names[#names + 1] = answer[2][i] end
  return {answer[1] == '0' and 'z:' or 'h:' .. answer[1], names}
end
-- From one prime to the next, past all of its values.
local from = at == '' and '-' or '(' .. at .. ';'
for i = 1, count do
  local member = redis.call('ZRANGEBYLEX', index_key, from, '+', 'LIMIT', 0, 1)[1]
  if not member then return {'', names} end
  names[i] = string.match(member, '^[^:]+')
  from = '(' .. names[i] .. ';'
end
return {'z:' .. names[count], names}
