-- Reads the allowance and changes nothing.
-- Returns {seen, now, taken, reopens, caution}.
if reopens() > 0 and reopens() <= now then
  blocked_until = 0
  taken = redis.call('ZCOUNT', held, '(' .. text(now), '+inf')
end
return answer('seen')
