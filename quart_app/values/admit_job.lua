-- Stores a new job, unless there are too many unfinished jobs, or all kept jobs together take too many bytes.
-- KEYS: job, kept, open, size (see the head of jobs.py: kept jobs, unfinished jobs, and the bytes of all kept jobs)
-- ARGV:
--   1, 2     of the job: id, number of its bytes
--   3, 4     maximum number of unfinished jobs, maximum number of bytes of all kept jobs
--   5        time until the job expires if its work is not sent (ms)
--   from 6   field, text, ... of the job
-- A replica stores the job with this script, and then sends its work in a commit (`Jobs._send`). That commit moves the job's
-- expiry, and its scores in `kept` and `open`, to later moments. If the replica dies before, the job expires after these ms.
-- Returns one of these lists, which `Jobs._admit` reads, with moments in ms:
--   {"admitted", when the job was created}
--   {"open", now, facts of an unfinished job, ...}: there are too many; the facts are the first eight FIELDS of jobs.py
--   {"size", now, when enough kept jobs have expired}: there is no room
-- If somebody has deleted the counter `size`, it begins again at 0: it counts too few bytes until no job is kept any more.
local job_key, kept_key, open_key, kept_bytes_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, job_bytes, most_unfinished, most_kept_bytes, unsent_ms =
  ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local job_prefix = string.sub(job_key, 1, #job_key - #id)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function as_text(number) return string.format('%.0f', number) end

-- The job exists already if the answer to an earlier call was lost, and the replica sends the call again.
local created = redis.call('HGET', job_key, 'created')
if created then return {'admitted', created} end

-- `member` is "<id> <bytes>".
local function bytes_of(member) return tonumber(string.match(member, ' (%d+)$')) end

-- Expired jobs make room. To remove more than 1000 of them at once would block the server for long, so the next call removes
-- the rest.
local kept_bytes = tonumber(redis.call('GET', kept_bytes_key) or '0')
for _, member in ipairs(redis.call('ZRANGEBYSCORE', kept_key, '-inf', '(' .. as_text(now), 'LIMIT', 0, 1000)) do
  redis.call('ZREM', kept_key, member)
  kept_bytes = kept_bytes - bytes_of(member)
end
if redis.call('EXISTS', kept_key) == 0 then
  kept_bytes = 0
  redis.call('DEL', kept_bytes_key)
elseif redis.call('EXISTS', kept_bytes_key) == 1 then
  -- A key that is gone stays gone here, because SET would make it without an expiry. If this job is admitted, INCRBY makes it
  -- again, and PEXPIRE gives it an expiry.
  redis.call('SET', kept_bytes_key, as_text(kept_bytes), 'KEEPTTL')
end

-- Removes from the list of unfinished jobs those whose score has passed, and those that have finished. The score is the job's
-- deadline; before its work is sent, it is the earlier moment at which the job expires. A job whose hash somebody has deleted
-- counts as unfinished until that moment.
redis.call('ZREMRANGEBYSCORE', open_key, '-inf', '(' .. as_text(now))
local unfinished_jobs = {}  -- the facts of each
for _, other_id in ipairs(redis.call('ZRANGE', open_key, 0, -1)) do
  local found = redis.call('HMGET', job_prefix .. other_id, 'created', 'deadline', 'values', 'left', 'stage:A', 'stage:B',
    'stage:C', 'stage:D')
  -- found[4] is "left": how many values have neither factors nor an error yet.
  if found[4] == '0' then redis.call('ZREM', open_key, other_id) else unfinished_jobs[#unfinished_jobs + 1] = found end
end
if #unfinished_jobs >= most_unfinished then return {'open', as_text(now), unpack(unfinished_jobs)} end

-- A job that alone is larger than the bound is admitted if no other job is kept.
local bytes_missing = kept_bytes > 0 and kept_bytes + job_bytes - most_kept_bytes or 0
if bytes_missing > 0 then
  -- Finds out when enough of the jobs that expire next are gone. At most 1000 jobs are counted, to bound the time. If these
  -- are too few, the moment is too early, and a client that tries again then is refused once more.
  local room_at, first_rank = now, 0
  while bytes_missing > 0 do
    local members_and_expiries = redis.call('ZRANGE', kept_key, first_rank, first_rank + 99, 'WITHSCORES')
    for i = 1, #members_and_expiries, 2 do
      if bytes_missing > 0 then
        bytes_missing, room_at = bytes_missing - bytes_of(members_and_expiries[i]), members_and_expiries[i + 1]
      end
    end
    first_rank = first_rank + 100
    if #members_and_expiries == 0 or first_rank >= 1000 then break end
  end
  return {'size', as_text(now), as_text(room_at)}
end

-- The fields of the job begin at ARGV[6].
redis.call('HSET', job_key, 'created', as_text(now), 'size', ARGV[2], unpack(ARGV, 6))
redis.call('ZADD', kept_key, as_text(now + unsent_ms), id .. ' ' .. ARGV[2])
redis.call('ZADD', open_key, as_text(now + unsent_ms), id)
redis.call('INCRBY', kept_bytes_key, ARGV[2])
-- Each key lives at least as long as this job: NX sets the expiry of a key that has none, GT moves an earlier expiry. Redis
-- does not allow both in one command.
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, unsent_ms, 'NX')
  redis.call('PEXPIRE', key, unsent_ms, 'GT')
end
return {'admitted', as_text(now)}
