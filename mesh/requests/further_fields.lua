-- Reads the further fields of entries. A part of commit.lua and submit.lua.

-- Returns the text of a shared key; "" if the key is absent; nil if somebody has overwritten it with another type.
local function text_at(key)
  local text_or_error = redis.pcall('GET', key)  -- false if the key is absent
  if type(text_or_error) ~= 'table' then return text_or_error or '' end
end

-- Returns the further fields of an entry as a list of names and values. `joined` has them as "name value name value", or is
-- "". If the last field is `read`, its value is a shared key, or several with commas between them. Then the list gets one
-- more field, `found`: the text that the key has now, or a JSON list of the texts of several keys. If `text_at` returns nil for
-- a key, there is no `found`, and the handler reads the keys itself.
local function further_fields(joined)
  local fields = {}
  for word in string.gmatch(joined, '%S+') do fields[#fields + 1] = word end
  if fields[#fields - 1] ~= 'read' then return fields end
  -- `texts` has the texts of all keys, and `text` the text of the latest key.
  local texts, text = {}, nil
  for key in string.gmatch(fields[#fields], '[^,]+') do
    text = text_at(key)
    if not text then return fields end
    texts[#texts + 1] = text
  end
  fields[#fields + 1] = 'found'
  fields[#fields + 1] = #texts > 1 and cjson.encode(texts) or text
  return fields
end
