#!lua flags=allow-oom
-- Deletes a job that is not finished, for an operator, and says so in the audit log.
-- KEYS: job, kept, open, size (see jobs.py), audit log
-- ARGV: id, actor, source, length of the audit log
-- Returns how many values the job has and how many of them are neither found nor failed; nothing if there is no such
-- job. With 0 left the job is finished, and it is not deleted.
local job_key, kept_key, open_key, size_key, audit_key, id = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[1]

--[[ forget_job.lua ]]
local values, left = unpack(redis.call('HMGET', job_key, 'values', 'left'))
if not values then return end
if left ~= '0' then
  forget(job_key, kept_key, open_key, size_key, id)
  redis.call('XADD', audit_key, 'MAXLEN', '~', ARGV[4], '*', 'event', 'job cancelled', 'actor', ARGV[2], 'source', ARGV[3],
    'ids', id, 'values', values, 'left', left)
end
return {tonumber(values), tonumber(left)}
