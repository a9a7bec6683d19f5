-- Grants one request a slot if the provider takes requests.
-- common.lua stands before this script. All names that are not declared here are its locals.
-- ARGV[4]  id of the reservation; a second call with the same id grants the same slot
-- Returns {granted | probing | closed, now, taken, reopens, caution}.
local id = ARGV[4]

if redis.call('ZSCORE', held_key, id) then return make_answer('granted') end

if reopens_at_ms() > 0 then
  if now_ms < reopens_at_ms() then return make_answer('closed') end
  open_window()
  store()
  -- Requests that kept their slots may fill the new window, too.
  if reopens_at_ms() > now_ms then return make_answer('closed') end
end

-- While there is caution, requests are sent one at a time. The others wait until the present one has an outcome, or can no
-- longer be sent.
if caution > 0 and last_send_by_ms() > now_ms then return make_answer('probing') end

taken = taken + 1
redis.call('ZADD', held_key, to_text(now_ms + hold_ms), id)
store()
return make_answer('granted')
