-- Takes a request from those that wait. Returns its fields as words; nothing if it does not wait.
local function left(name)
  if redis.call('ZREM', 'mesh:later', name) == 0 then return end
  local entry_key = 'mesh:later:' .. name
  local flat = redis.call('HGETALL', entry_key)
  redis.call('DEL', entry_key)
  for i = 1, #flat, 2 do
    if flat[i] == 'parked' then redis.call('ZREM', 'mesh:parked:' .. flat[i + 1], name) end
  end
  return flat
end
