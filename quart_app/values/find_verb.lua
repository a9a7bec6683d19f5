-- Verbs of transactions that answer the request with searches for the values that have a prime factor.
--   find-values, index key, alone key, records key, and the other parameters of find.lua
--       Make one search. The answer is, for example, {"until": "", "found": "c136=2 2 2 17;c137=137"}.
--   find-each, index key, alone key, records key, moment, most_bytes, most_looked_at, prime, after, most, prime, ...
--       Make several searches. find.lua explains the parameters; prime, after and most come once for each search. The answer
--       is {"each": [{...}, ...]}, with one answer for each search.
-- The text that a search finds has no character that JSON would have to escape.
-- A part of commit_verbs.lua. From there it uses `verbs`; from the other parts of commit.lua it uses `tx` and `head`. The body
-- of the reply is tx[head + 8], as the list of words at the top of commit.lua says.

-- Most commits make no search, so the function of find.lua is made at the first search of a commit.
local function make_find()
-- This part defines `find_values`.
--[[ find.lua ]]
  return find_values
end
local made_find  -- what `make_find` returned; nil before the first search

-- Returns the answer to one search. If the search fails, returns nil and the error.
local function part_of(...)
  made_find = made_find or make_find()
  local is_ok, until_value, lines = pcall(made_find, ...)
  if not is_ok then
    local reason = until_value  -- what `pcall` returns second: here the error
    return nil, {err = type(reason) == 'table' and reason.err or tostring(reason)}
  end
  -- What the JSON has around the lines becomes a part of the first and of the last line, so the text is made only once.
  lines[1] = '{"until":"' .. until_value .. '","found":"' .. (lines[1] or '')
  lines[#lines] = lines[#lines] .. '"}'
  return table.concat(lines, ';')
end

-- tx[first] is the name of the verb, and tx[last] its last word.
verbs['find-values'] = function(first, last)
  local part, failure = part_of(unpack(tx, first + 1, last))
  if failure then return failure end
  tx[head + 8] = part
end

verbs['find-each'] = function(first, last)
  local index_key, alone_key, records_key, moment, most_bytes, most_looked_at = unpack(tx, first + 1, first + 6)
  local parts = {}
  for k = first + 7, last, 3 do
    local part, failure =
      part_of(index_key, alone_key, records_key, tx[k], tx[k + 1], moment, tx[k + 2], most_bytes, most_looked_at)
    if failure then return failure end
    parts[#parts + 1] = part
  end
  tx[head + 8] = '{"each":[' .. table.concat(parts, ',') .. ']}'
end
