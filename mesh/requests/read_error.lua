-- Returns nothing if `answer` is the answer of a command. If it is the error of a `pcall`, returns a code and what the code is
-- about. There are two such errors: the Redis user may not read the key, or somebody has overwritten the key with another
-- type. A part of submit.lua and of limits.lua.
local function read_error(answer, key)
  if type(answer) ~= 'table' or not answer.err then return end
  local why = tostring(answer.err)
  if string.find(why, 'NOPERM', 1, true) or string.find(why, 'ACL', 1, true) then
    return 'forbidden', why
  end
  return 'wrong-type', key
end
