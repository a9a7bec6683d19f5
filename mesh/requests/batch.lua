-- Reads the words of a batch into `words`, and its length in bytes into `bytes`. A part of commit.lua and submit.lua.
-- The argument number PLACE is one JSON list with the words of all items of the batch: transactions, or groups of requests.
-- One list costs less than an argument for each word, and half as much as a list for each item.
-- The first word of an item is the number of its words, with this one. A long word is null in the list. The long words
-- follow as arguments, in the same order, because reading them as JSON takes several times as long.
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
