-- Reads the words of a batch into `words`, and the length of the batch in bytes into `bytes`. A part of commit.lua and
-- submit.lua. An item of a batch is a transaction, or a group of requests.
-- The argument number BATCH_ARGUMENT is one JSON list with the words of all items. One list costs less than an argument for
-- each word, and half as much as a list for each item. The first word of an item is the number of its words, itself included.
-- In place of a long word the list has null. The long words are the arguments after the list, in the same order, because
-- reading them as JSON takes several times as long.
local words, bytes = cjson.decode(ARGV[BATCH_ARGUMENT]), #ARGV[BATCH_ARGUMENT]
if #ARGV > BATCH_ARGUMENT then
  local at_long = BATCH_ARGUMENT
  for k = 1, #words do
    if words[k] == cjson.null then
      at_long = at_long + 1
      words[k], bytes = ARGV[at_long], bytes + #ARGV[at_long]
    end
  end
end
