#!lua flags=allow-oom
-- Deletes an unfinished job for an operator, and adds an entry to the audit log.
-- The script also runs when memory is full (`allow-oom`), because it removes more than it adds.
-- KEYS: job, kept, open, size (see jobs.py), audit log
-- ARGV: id, name and address of the actor (the operator), maximum length of the audit log
-- Returns {number of values of the job, how many of them have neither factors nor an error yet}; nothing if there is no
-- such job. If the second number is 0, the job is finished, and the script does not delete it.
local job_key, kept_key, open_key, kept_bytes_key, audit_key, id = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[1]

-- The text of forget_job.lua takes the place of the next line. It defines `forget`.
--[[ forget_job.lua ]]
local values, left = unpack(redis.call('HMGET', job_key, 'values', 'left'))
if not values then return end
if left ~= '0' then
  forget(job_key, kept_key, open_key, kept_bytes_key, id)
  redis.call('XADD', audit_key, 'MAXLEN', '~', ARGV[4], '*', 'event', 'job cancelled', 'actor', ARGV[2], 'source', ARGV[3],
    'ids', id, 'values', values, 'left', left)
end
return {tonumber(values), tonumber(left)}
