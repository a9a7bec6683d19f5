-- Returns the further fields of an entry as a list: the words of "name value name value". If the last field is
-- `read`, which names a shared key, a field `found` follows: what this key has now, "" for nothing.
local function further_fields(words)
  local fields = {}
  for word in string.gmatch(words, '%S+') do fields[#fields + 1] = word end
  if fields[#fields - 1] == 'read' then
    local found = redis.pcall('GET', fields[#fields])
    -- Somebody may have overwritten it with another kind of key.
    if type(found) ~= 'table' then
      fields[#fields + 1] = 'found'
      fields[#fields + 1] = found or ''
    end
  end
  return fields
end
