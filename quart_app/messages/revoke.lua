#!lua flags=allow-oom
-- End a session on every replica. It runs when memory is full, too: a logout must not be refused, and the key expires.
-- KEYS[1]  string  the session that was logged out
-- ARGV     when the session would end (s)
redis.call('SET', KEYS[1], 'logged out', 'EXAT', ARGV[1])
