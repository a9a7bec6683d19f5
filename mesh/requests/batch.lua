-- Reads the batch, for the scripts that get one. It is the argument PLACE: the words of all its items as one list, as JSON,
-- because a list for each item costs as much again. The first word of an item is how many words it has, with itself. A long
-- word is null there. The long words are the arguments after it, in the same order, because reading them as JSON takes
-- several times as long. Afterwards `words` has them, and `bytes` says how many bytes they have.
local words, bytes = cjson.decode(ARGV[PLACE]), #ARGV[PLACE]
if #ARGV > PLACE then
  local long = PLACE
  for k = 1, #words do
    if words[k] == cjson.null then
      long = long + 1
      words[k], bytes = ARGV[long], bytes + #ARGV[long]
    end
  end
end
