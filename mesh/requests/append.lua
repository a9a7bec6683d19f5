-- Appends an entry to a request stream, for the scripts that do so. Its id is its time on the mesh's clock: that of the
-- server, which stands still here when the server's clock steps back. So entries of different streams have ids in the
-- order in which they were appended, and no expiry that counts from one of them is over before its time.
local stamp
-- `now` is the time of the server (ms), and `clock` what the key of the mesh's clock has.
local function begin_stamps(now, clock)
  local latest = string.format('%.0f', math.max(now, tonumber(clock or '0')))
  redis.call('SET', 'mesh:clock', latest)
  stamp = latest .. '-*'
end

local function append(stream, ...)
  if not stamp then
    local time = redis.call('TIME')
    begin_stamps(time[1] * 1000 + math.floor(time[2] / 1000), redis.call('GET', 'mesh:clock'))
  end
  local id = redis.pcall('XADD', stream, stamp, ...)
  -- An entry that was written by hand may have a later id.
  if type(id) == 'table' then id = redis.pcall('XADD', stream, '*', ...) end
  return id
end
