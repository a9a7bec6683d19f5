#!lua flags=allow-oom
-- Says that a consumer still works on its events, so that nobody takes them over.
-- KEYS: stream
-- ARGV: group, consumer, id, ...
-- Returns how many are still this consumer's
local stream, group, consumer, kept = KEYS[1], ARGV[1], ARGV[2], 0
for i = 3, #ARGV do
  -- Only what is ours: a plain XCLAIM would steal back what another claimed while we slept.
  if #redis.call('XPENDING', stream, group, ARGV[i], ARGV[i], 1, consumer) > 0 then
    redis.call('XCLAIM', stream, group, consumer, 0, ARGV[i], 'JUSTID')
    kept = kept + 1
  end
end
return kept
