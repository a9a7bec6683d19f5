-- Appends an entry to a request stream, for the scripts that do so. Its id is its time on the mesh's clock: that of the
-- server, which stands still here when the server's clock steps back. So entries of different streams have ids in the
-- order in which they were appended, and no expiry that counts from one of them is over before its time.
local stamp
-- `time` is what TIME has answered, and `clock` what the key of the mesh's clock has.
local function begin_stamps(time, clock)
  -- In ms. To calculate it and to format the number costs 1 µs more.
  local latest = time[1] .. string.sub('00000' .. time[2], -6, -4)
  if clock and tonumber(clock) > tonumber(latest) then latest = clock end
  redis.call('SET', 'mesh:clock', latest)
  stamp = latest .. '-*'
end

local function append(stream, ...)
  if not stamp then
    begin_stamps(redis.call('TIME'), redis.call('GET', 'mesh:clock'))
  end
  local id = redis.pcall('XADD', stream, stamp, ...)
  -- An entry that was written by hand may have a later id.
  if type(id) == 'table' then id = redis.pcall('XADD', stream, '*', ...) end
  return id
end
