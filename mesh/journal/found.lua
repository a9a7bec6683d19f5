-- Begins a log if there is none. A caller may also name a log that is to be replaced: one that began empty, or one that began
-- with a state that nobody has any more. The caller names the last entry of that log that its state has. The log is
-- replaced only if this is still the newest entry, so no entry is lost.
-- KEYS: the stream of the log
-- ARGV:
--   1        identity of the new log
--   2, 3     of its first entry: number, and the lowest time (ms) with which its id may begin
--   4, 5     of its first entry: writer, body
--   6, 7     of the log that may be replaced: identity, number of the newest entry that the caller has. Both are "" if no log
--            may be replaced
-- Returns {id}, or {} if there is a log already
-- Redis refuses this script when memory is full, because the script stores an entry.
local log, identity, number, least_ms = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local writer, body, instead_of, known_up_to = ARGV[4], ARGV[5], ARGV[6], ARGV[7]

local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
if newest then
  local newest_fields = {}
  for i = 1, #newest[2], 2 do newest_fields[newest[2][i]] = newest[2][i + 1] end
  if newest_fields.log ~= instead_of or newest_fields.number ~= known_up_to then return {} end
end
redis.call('DEL', log)
local time = redis.call('TIME')
-- The id is above all ids that the founder has seen, so the new log has only later ids, whatever the server's clock says.
-- The field `write` has the writer's name for its entry (see append.lua). The founding entry has no name.
local ms = math.max(time[1] * 1000 + math.floor(time[2] / 1000), least_ms)
return {redis.call('XADD', log, string.format('%.0f-0', ms), 'log', identity, 'number', number,
  'op', 'founded', 'from', writer, 'write', '', 'body', body)}
