-- Returns the further fields of an entry as a list: the words of "name value name value", or of "".
local no_fields = {}
local function further_fields(words)
  if words == '' then return no_fields end
  local fields = {}
  for word in string.gmatch(words, '%S+') do fields[#fields + 1] = word end
  return fields
end
