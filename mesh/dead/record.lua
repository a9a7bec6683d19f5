-- Adds an entry about an act to the audit log, in the same step as the act. From ARGV[first_arg] on stand the actor, the
-- actor's address, and the maximum length of the audit log. ARGV[5] and ARGV[6] are the reason and the stream of walk.lua. A
-- reason can be long, and the audit log keeps thousands of entries. So the entry gets only the first 200 bytes of the reason.
local function record(first_arg, event, ids, outcome, problem)
  local words = {'event', event, 'actor', ARGV[first_arg], 'source', ARGV[first_arg + 1], 'outcome', outcome}
  if ARGV[5] ~= '' then words[#words + 1], words[#words + 2] = 'reason', string.sub(ARGV[5], 1, 200) end
  if ARGV[6] ~= '' then words[#words + 1], words[#words + 2] = 'stream', ARGV[6] end
  if problem ~= '' then words[#words + 1], words[#words + 2] = 'problem', problem end
  words[#words + 1], words[#words + 2] = 'ids', table.concat(ids, ' ')
  redis.call('XADD', audit_key, 'MAXLEN', '~', ARGV[first_arg + 2], '*', unpack(words))
end
