-- Reads a batch for the scripts that get one. It is one argument: the words of all its items as one list, as JSON, because
-- a list for each item costs as much again. The first word of an item is how many words it has, with itself. A long word is
-- null there. The long words are the arguments after it, in the same order, because reading them as JSON takes several
-- times as long. Returns the words, and how many bytes they have.
local function batch_at(place)
  local words, bytes, long = cjson.decode(ARGV[place]), #ARGV[place], place
  if #ARGV == place then return words, bytes end
  for k = 1, #words do
    if words[k] == cjson.null then
      long = long + 1
      words[k], bytes = ARGV[long], bytes + #ARGV[long]
    end
  end
  return words, bytes
end
