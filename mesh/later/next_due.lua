-- Returns when (ms) a request or a schedule is due next; "" if none is. A key that somebody has overwritten counts as empty. A
-- part of wake.lua, and of lease/renew.lua.
local function next_due(later_key, schedules_key)
  local function earliest(key) return tonumber(redis.pcall('ZRANGE', key, 0, 0, 'WITHSCORES')[2]) or math.huge end
  local due = math.min(earliest(later_key), earliest(schedules_key))
  return due < math.huge and string.format('%.0f', due) or ''
end
