-- Begins a log where there is none. A log that nobody could ever restore from, because its founder died before anything
-- was appended, may be replaced by a caller that names it.
-- KEYS: log
-- ARGV: identity, number of the founding entry, least ms of its id, writer, body, identity of the log that may be
--       replaced or ""
-- Returns {id}, or {} where there is a log already
-- Redis refuses it when memory is full, because it needs more.
local log, identity, number, floor = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local writer, body, instead_of = ARGV[4], ARGV[5], ARGV[6]

local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
if newest then
  local is = {}
  for i = 1, #newest[2], 2 do is[newest[2][i]] = newest[2][i + 1] end
  if is.log ~= instead_of or is.op ~= 'founded' then return {} end
end
redis.call('DEL', log)
local time = redis.call('TIME')
-- The id is above all that the founder has seen, so every later entry is newer, whatever this clock says.
local ms = math.max(time[1] * 1000 + math.floor(time[2] / 1000), floor)
return {redis.call('XADD', log, string.format('%.0f-0', ms), 'log', identity, 'number', number,
  'op', 'founded', 'from', writer, 'write', '', 'body', body)}
