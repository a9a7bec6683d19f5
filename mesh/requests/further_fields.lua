-- Returns the text of a shared key; "" if the key is absent; nil if somebody has overwritten it with another type.
local function found_at(key)
  local found = redis.pcall('GET', key)
  if type(found) ~= 'table' then return found or '' end
end

-- Returns the further fields of an entry as a list of names and values. `words` has them as "name value name value", or is
-- "". If the last field is `read`, its value is a shared key, or several with commas between them. Then the list gets one
-- more field, `found`: the text that the key has now, or a JSON list of the texts of several keys.
local function further_fields(words)
  local fields = {}
  for word in string.gmatch(words, '%S+') do fields[#fields + 1] = word end
  if fields[#fields - 1] ~= 'read' then return fields end
  -- `found` has the texts of all keys, and `one` the text of the latest key.
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
