-- Appends entries to request streams; a part of the scripts that do so. The id of an entry is its time on the mesh's clock.
-- The mesh's clock is the server's, except that it stands still when the server's clock steps back. So the ids of different
-- streams are in the order in which the entries were appended. No id is earlier than the server's clock, so an expiry that is
-- counted from an id does not come too early. Only a request in place gets its id elsewhere: see `wrong_pass` of
-- commit_checks.lua.
-- `stamp` is the id that XADD gets: this time (ms), and "-*", for which Redis puts a number. It is no stamp of a journal.
local stamp
-- Returns the time (ms) that the text of the key mesh:clock says; 0 if the key is missing, or is overwritten with another text.
-- A time has 13 digits until the year 2286. A text of more than 15 digits counts as overwritten: Lua may round its number.
local function ms_of_clock(clock)
  return clock and #clock < 16 and tonumber(string.match(clock, '^%d+$')) or 0
end

-- Sets the time of all ids of this script. `time` is the answer of TIME, and `clock` is the text of the key mesh:clock.
local function begin_stamps(time, clock)
  -- In ms, cut from the texts of the seconds and the µs: to calculate and format a number takes 1 µs longer.
  local latest = time[1] .. string.sub('00000' .. time[2], -6, -4)
  if ms_of_clock(clock) > tonumber(latest) then latest = clock end
  redis.call('SET', 'mesh:clock', latest)
  stamp = latest .. '-*'
end

local function append(stream, ...)
  if not stamp then
    -- MGET, because it has no error if the key has another type.
    begin_stamps(redis.call('TIME'), redis.call('MGET', 'mesh:clock')[1])
  end
  local id = redis.pcall('XADD', stream, stamp, ...)
  -- XADD fails if somebody has written an entry with a later id by hand. Then the server chooses the id.
  if type(id) == 'table' then id = redis.pcall('XADD', stream, '*', ...) end
  return id
end
