-- Founds a log where there is none. One that nobody could ever restore from (its founder died before
-- anything was appended) may be founded again by whoever names it.
-- KEYS: log
-- ARGV: identity, number of the founding entry, least ms of its id, writer, body, identity that may be
--       replaced or ""
-- Returns {id}, or {} where there is a log already
-- Not allowed when memory is full: it asks for more.
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
-- Above all that the founder has seen: what is written from now on is newer, whatever this clock says.
local ms = math.max(time[1] * 1000 + math.floor(time[2] / 1000), floor)
return {redis.call('XADD', log, string.format('%.0f-0', ms), 'log', identity, 'number', number,
  'op', 'founded', 'from', writer, 'write', '', 'body', body)}
