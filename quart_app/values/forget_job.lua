-- A part of end_job.lua and cancel_job.lua: deletes a job, so that its work stops and its bytes no longer count.
local function forget(job_key, kept_key, open_key, size_key, id)
  local size = redis.call('HGET', job_key, 'size')
  if not size then return 0 end
  redis.call('UNLINK', job_key)
  redis.call('ZREM', open_key, id)
  if redis.call('ZREM', kept_key, id .. ' ' .. size) == 1 and redis.call('EXISTS', size_key) == 1 then
    redis.call('DECRBY', size_key, size)
  end
  return 1
end
