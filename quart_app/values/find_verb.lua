-- A verb of transactions that answers the request with the values of a prime: {"until": "", "found": "c136=2 2 2 17;c137=137"}.
-- Lines have no character that JSON would have to escape.
--   find-values, index, alone, records, and the other words of find.lua
-- It stands inside commit_verbs.lua, and uses `verbs` of that file.

-- Most commits find nothing, and need none of these functions.
local function make_find()
--[[ find.lua ]]
  return find_values
end
local find_in

verbs['find-values'] = function(first, last)
  find_in = find_in or make_find()
  local is_done, until_value, lines = pcall(find_in, unpack(tx, first + 1, last))
  if not is_done then
    local reason = until_value
    return {err = type(reason) == 'table' and reason.err or tostring(reason)}
  end
  lines[1] = '{"until":"' .. until_value .. '","found":"' .. (lines[1] or '')
  lines[#lines] = lines[#lines] .. '"}'
  tx[head + 8] = table.concat(lines, ';')
end
