#!lua flags=allow-oom
-- Gives an event up, in one step: writes a dead letter, acknowledges the event and deletes it. If several consumers try, one
-- succeeds.
-- The body is copied inside the server, so that bytes that are not text stay as they are. If an event has other fields than
-- `body`, the body of its letter is a JSON object with all of the event's fields. The field `encoded` of the letter is then
-- "fields", and a replay reads the fields of the event from this object.
-- The script also runs when memory is full (`allow-oom`), because the dead letter takes the place of the event.
-- KEYS: stream, dead letters
-- ARGV: group, id, reason, deliveries, maximum length of the dead letters
-- Returns 1 if the event was buried, 0 if it was settled before
local stream, dead_key = KEYS[1], KEYS[2]
local group, id, reason, deliveries, most_kept = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local entry = redis.call('XRANGE', stream, id, id)[1]
-- This also runs if somebody has deleted the event: then it is no longer pending, and no consumer takes it over again.
redis.call('XACK', stream, group, id)
if not entry then return 0 end
local fields, body, encoded = entry[2], nil, 'body'
if #fields == 2 and fields[1] == 'body' then
  body = fields[2]
else
  local all_fields = {}
  encoded = 'fields'
  for i = 1, #fields, 2 do all_fields[fields[i]] = fields[i + 1] end
  body = cjson.encode(all_fields)
end
redis.call('XADD', dead_key, 'MAXLEN', '~', most_kept, '*', 'kind', 'event', 'group', group, 'encoded', encoded,
  'stream', stream, 'id', id, 'reason', reason, 'deliveries', deliveries, 'body', body)
redis.call('XDEL', stream, id)
return 1
