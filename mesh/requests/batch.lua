-- Reads a batch for the scripts that get one. It is one argument: a list of lists of words, as JSON. A long word is null
-- there. The long words are the arguments after it, in the same order, because reading them as JSON takes several times as
-- long. Returns the lists, and how many bytes they have.
local function batch_at(place)
  local lists, bytes, long = cjson.decode(ARGV[place]), #ARGV[place], place
  if #ARGV == place then return lists, bytes end
  for _, words in ipairs(lists) do
    for k = 1, #words do
      if words[k] == cjson.null then
        long = long + 1
        words[k], bytes = ARGV[long], bytes + #ARGV[long]
      end
    end
  end
  return lists, bytes
end
