#!lua flags=allow-oom,no-writes
-- The values that have a prime as a factor, ascending; costs what the answer costs.
-- KEYS: index, records
-- ARGV: first member wanted, first member beyond, moment in ms, most values
-- Returns {value, record, ...}
local index_key, records_key = KEYS[1], KEYS[2]
local from, to, moment, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local found, count = {}, 0
while count < most do
  local members = redis.call('ZRANGEBYLEX', index_key, from, to, 'LIMIT', 0, math.min(most - count, 1000))
  if #members == 0 then break end
  local values = {}
  for i, member in ipairs(members) do
    values[i] = string.match(member, ':[a-y](%d+)$') or string.match(member, ':z%d%d%d%d(%d+)$')
  end
  local records = redis.call('HMGET', records_key, unpack(values))
  for i, record in ipairs(records) do
    -- A record past its time, which the sweep has not reached, is not there.
    local expiry = record and tonumber(string.match(record, '^%S+ (%d+)'))
    if expiry and expiry > moment then
      found[#found + 1] = values[i]
      found[#found + 1] = record
      count = count + 1
    end
  end
  from = '(' .. members[#members]
end
return found
