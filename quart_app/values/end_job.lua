#!lua flags=allow-oom
-- Deletes a job when its client asks for it. The script only frees memory, so it may run when Redis is full.
-- KEYS: job, kept, open, size   (see jobs.py)
-- ARGV: id
-- Returns 1, or 0 if there is no such job

-- The text of forget_job.lua takes the place of the next line. It defines `forget`.
--[[ forget_job.lua ]]
return forget(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1])
