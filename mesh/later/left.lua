-- Removes a waiting request. A part of cancel.lua, and of requests/end.lua. Returns its fields as a flat list; nothing if no
-- request of this name waits.
local function take_waiting(name)
  if redis.call('ZREM', 'mesh:later', name) == 0 then return end
  local entry_key = 'mesh:later:' .. name
  local flat = redis.call('HGETALL', entry_key)
  redis.call('DEL', entry_key)
  for i = 1, #flat, 2 do
    if flat[i] == 'parked' then redis.call('ZREM', 'mesh:parked:' .. flat[i + 1], name) end
  end
  return flat
end
