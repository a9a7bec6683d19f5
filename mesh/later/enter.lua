#!lua flags=allow-oom
-- Takes a request that came without its limit from its stream, and puts it there again, or lets it wait, as its limit says.
-- KEYS: stream, later
-- ARGV: id, consumer, limit as limits.lua reads it, most requests that may wait
-- Returns {placed | not-mine | why it cannot be placed now, what that is about}
local stream, later_key = KEYS[1], KEYS[2]
local id, consumer, limit, most = unpack(ARGV)

--[[ ../requests/append.lua ]]

--[[ ../requests/options.lua ]]

--[[ taken.lua ]]
local options = make_options()
local found = redis.call('XRANGE', stream, id, id)[1]
if not found then return {'not-mine', ''} end
local about = options.named(found[2])
local deadline = about.deadline or '0'
local code, what = options.limits().refusal(limit, deadline, tonumber(most))
-- A request without a caller that comes too soon waits: nobody would learn of a refusal.
if code and not (code == 'limited' and (about.reply_to or '') == '') then return {code, what} end
local fields, named, name = taken(stream, id, consumer)
if not fields then return {'not-mine', ''} end
if not about.first then fields[#fields + 1], fields[#fields + 2] = 'first', id end
local to = string.match(stream, '[^:]+$')
local again = options.limits().place(limit, name, to, fields, deadline)
-- An entry that was written by hand may have the highest id there is. Then its stream takes no more.
if type(again) == 'table' then return {'wrong-type', stream} end
leave(stream, id)
if named.once then options.once.moved(named, again and stream or later_key, again or name, 0) end
return {'placed', ''}
