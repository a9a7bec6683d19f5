-- Grants one request a slot if the provider takes requests.
-- ARGV[4]  id of the reservation; a second call with the same id grants the same slot
-- Returns {granted | probing | closed, now, taken, reopens, caution}.
local id = ARGV[4]

if redis.call('ZSCORE', held, id) then return answer('granted') end

if reopens() > 0 then
  if now < reopens() then return answer('closed') end
  open_window()
  store()
  if reopens() > now then return answer('closed') end
end

-- While there is caution, requests are sent one at a time. The others wait until the present one has an outcome, or can no
-- longer be sent.
if caution > 0 and last_send_by() > now then return answer('probing') end

taken = taken + 1
redis.call('ZADD', held, text(now + hold_ms), id)
store()
return answer('granted')
