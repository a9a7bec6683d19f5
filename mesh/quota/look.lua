-- Reads the allowance and changes nothing.
-- common.lua stands before this script. All names that are not declared here are its locals.
-- Returns {seen, now, taken, reopens, caution}.
if reopens_at_ms() > 0 and reopens_at_ms() <= now_ms then
  blocked_until = 0
  taken = redis.call('ZCOUNT', held_key, '(' .. to_text(now_ms), '+inf')
end
return make_answer('seen')
