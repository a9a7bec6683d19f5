#!lua flags=allow-oom,no-writes
-- The values that have a prime as a factor, ascending; costs what the answer costs.
-- KEYS: index, alone, records
-- ARGV: prime and the value that those wanted are above (or "") as the index has them, moment in ms, most values
-- Returns {value, record, ...}
local index_key, alone_key, records_key = KEYS[1], KEYS[2], KEYS[3]
local prime, after, moment, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local from, beyond = (after == '' and '[' or '(') .. prime .. ':' .. after, '(' .. prime .. ';'

-- The value that is not in the index, until it has its place among those that are. (Whatever the server's collation: a
-- letter decides, and where it is the same there are only digits, as many in both.)
local alone = redis.call('HGET', alone_key, prime)
if alone and alone <= after then alone = false end
local function put_in_place(texts, complete)
  for i, text in ipairs(texts) do
    if text >= alone then
      if text ~= alone then table.insert(texts, i, alone) end
      alone = false
      return
    end
  end
  if complete then
    texts[#texts + 1] = alone
    alone = false
  end
end

local function number(text)
  return string.match(text, '^[a-y](%d+)$') or string.match(text, '^z%d%d%d%d(%d+)$')
end

local found, count = {}, 0
local function add(texts)
  local values = {}
  for i, text in ipairs(texts) do values[i] = number(text) end
  for i, record in ipairs(redis.call('HMGET', records_key, unpack(values))) do
    -- A record past its time, which the sweep has not reached, is not there.
    local expiry = record and tonumber(string.match(record, '^%S+ (%d+)'))
    if expiry and expiry > moment and count < most then
      found[#found + 1] = values[i]
      found[#found + 1] = record
      count = count + 1
    end
  end
end

repeat
  local wanted = math.min(most - count, 1000)
  local members = redis.call('ZRANGEBYLEX', index_key, from, beyond, 'LIMIT', 0, wanted)
  local complete = #members < wanted
  local texts = {}
  for i, member in ipairs(members) do texts[i] = string.sub(member, #prime + 2) end
  if alone then put_in_place(texts, complete) end
  if #texts > 0 then add(texts) end
  if not complete then from = '(' .. members[wanted] end
until complete or count >= most
return found
