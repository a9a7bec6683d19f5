-- Returns what a shared key has, "" for nothing; nil if somebody has overwritten it with another kind of key.
local function found_at(key)
  local found = redis.pcall('GET', key)
  if type(found) ~= 'table' then return found or '' end
end

-- Returns the further fields of an entry as a list: the words of "name value name value". If the last field is
-- `read`, which names a shared key, a field `found` follows: what this key has now, "" for nothing. Where commas stand
-- between several keys, it is a JSON list.
local function further_fields(words)
  local fields = {}
  for word in string.gmatch(words, '%S+') do fields[#fields + 1] = word end
  if fields[#fields - 1] ~= 'read' then return fields end
  local found, one = {}, nil
  for key in string.gmatch(fields[#fields], '[^,]+') do
    one = found_at(key)
    if not one then return fields end
    found[#found + 1] = one
  end
  fields[#fields + 1] = 'found'
  fields[#fields + 1] = #found > 1 and cjson.encode(found) or one
  return fields
end
