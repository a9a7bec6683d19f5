#!lua flags=allow-oom
-- Deletes a job, so that its work stops and its room is free. It only frees memory.
-- KEYS: job, kept, open, size   (see jobs.py)
-- ARGV: id
-- Returns 1, or 0 if there is no such job
local job_key, kept_key, open_key, size_key, id = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1]
local size = redis.call('HGET', job_key, 'size')
if not size then return 0 end
redis.call('UNLINK', job_key)
redis.call('ZREM', open_key, id)
if redis.call('ZREM', kept_key, id .. ' ' .. size) == 1 and redis.call('EXISTS', size_key) == 1 then
  redis.call('DECRBY', size_key, size)
end
return 1
