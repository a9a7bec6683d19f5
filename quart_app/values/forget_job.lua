-- A part of end_job.lua and cancel_job.lua: deletes a job, so that its work stops and its bytes no longer count.
-- Returns 1, or 0 if there is no such job.
local function forget(job_key, kept_key, open_key, kept_bytes_key, id)
  local job_bytes = redis.call('HGET', job_key, 'size')
  if not job_bytes then return 0 end
  redis.call('UNLINK', job_key)
  redis.call('ZREM', open_key, id)
  -- The bytes of a job count only as long as the job is in `kept`.
  if redis.call('ZREM', kept_key, id .. ' ' .. job_bytes) == 1 and redis.call('EXISTS', kept_bytes_key) == 1 then
    redis.call('DECRBY', kept_bytes_key, job_bytes)
  end
  return 1
end
