-- Appends one entry to a log, with the next number and an id above all others. The newest entry has the identity of the log
-- and the number of all entries so far. So no key beside the stream can be lost or disagree with it.
-- KEYS: the stream of the log
-- ARGV:
--   1, 2     identity of the log that the writer follows, number of the last entry that the writer has read
--   3        the lowest time (ms) with which the new entry's id may begin
--   4        time until which the entry may be appended (ms; 0: no limit)
--   5 to 8   of the new entry: op, writer, the writer's name for it, body
-- Returns {now in ms, 'done', id, number}, or {now in ms, reason} if nothing was appended. The reasons are:
--   missing    there is no log
--   replaced   it is another log
--   rewound    it ends before what the writer has read
--   late       it is too late for this append
-- Redis refuses this script when memory is full, because the script stores an entry.
local log, identity, read_up_to = KEYS[1], ARGV[1], tonumber(ARGV[2])
local least_ms, append_until = tonumber(ARGV[3]), tonumber(ARGV[4])
local op, writer, entry_name, body = ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', log) == 0 then return {now, 'missing'} end
-- XINFO also tells the last id that was given. The stream keeps it when the newest entry was deleted.
local stream_info = redis.call('XINFO', 'STREAM', log)
local newest_entry, last_id
for i = 1, #stream_info, 2 do
  if stream_info[i] == 'last-entry' then newest_entry = stream_info[i + 1] end
  if stream_info[i] == 'last-generated-id' then last_id = stream_info[i + 1] end
end
if not newest_entry then return {now, 'missing'} end
local newest_fields = {}
for i = 1, #newest_entry[2], 2 do newest_fields[newest_entry[2][i]] = newest_entry[2][i + 1] end
if newest_fields.log ~= identity then return {now, 'replaced'} end
local newest_number = tonumber(newest_fields.number)
if newest_number < read_up_to then return {now, 'rewound'} end
if append_until > 0 and now > append_until then return {now, 'late'} end

-- The id is above the last one even if the clock stands still or steps back. The second half of an id is at most 65535, so
-- that Python can pack an id into 64 bits (position.py).
local last_ms, last_sequence = string.match(last_id, '(%d+)-(%d+)')
local ms, sequence = math.max(now, least_ms), 0
if ms <= tonumber(last_ms) then
  ms, sequence = tonumber(last_ms), tonumber(last_sequence) + 1
  if sequence > 65535 then ms, sequence = ms + 1, 0 end
end
local next_number = string.format('%.0f', newest_number + 1)
local id = redis.call('XADD', log, string.format('%.0f-%.0f', ms, sequence), 'log', identity,
  'number', next_number, 'op', op, 'from', writer, 'write', entry_name, 'body', body)
return {now, 'done', id, next_number}
