#!lua flags=allow-oom
-- Cancels a request that is not answered yet: removes its entry, answers its caller, counts it as cancelled, and adds
-- an entry to the audit log. If a replica works on the request, its commit is refused from now on. The replica learns
-- of this when it next keeps its entries alive.
-- The script also runs when memory is full (`allow-oom`), because it removes more than it adds.
-- KEYS: books, audit log, stream, ...   (all possible request streams)
-- ARGV: id, actor, address of the actor, maximum length of the audit log, status and body of the reply
-- Returns {stream, op}; nothing if no stream has an entry with this id. Streams can have entries with the same id: then the
--       first of these streams counts
local books_key, audit_key = KEYS[1], KEYS[2]

-- This part defines `append`, which the part options.lua needs.
--[[ ../requests/append.lua ]]

-- This part defines `make_options`.
--[[ ../requests/options.lua ]]

local options = make_options()
local id, actor, source, status, body = ARGV[1], ARGV[2], ARGV[3], ARGV[5], ARGV[6]
for k = 3, #KEYS do  -- the request streams
  local stream = KEYS[k]
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if entry then
    local fields = options.named(entry[2])
    -- XACK fails if the stream has no group. Then there is nothing to acknowledge.
    redis.pcall('XACK', stream, 'workers', id)
    redis.call('XDEL', stream, id)
    -- `pcall`: if somebody has overwritten the books, only this count is missing.
    redis.pcall('HINCRBY', books_key, 'cancelled', 1)
    options.ended(fields, {status = status, body = body, from = actor, asked = id})
    local reply_to, op = fields.reply_to or '', fields.op or ''
    -- An entry that was written by hand may name any key in its field `reply_to`. So only a stream of replies gets the reply;
    -- 13 is the length of the prefix of such streams. XADD fails if that key is not a stream. Then no caller can read a reply
    -- there.
    if string.sub(reply_to, 1, 13) == 'mesh:replies:' then
      redis.pcall('XADD', reply_to, 'NOMKSTREAM', '*', 'request', fields.request or '', 'op', op, 'from', actor,
        'status', status, 'forwards', '0', 'body', body, 'asked', id)
    end
    redis.call('XADD', audit_key, 'MAXLEN', '~', ARGV[4], '*', 'event', 'request cancelled', 'actor', actor, 'source',
      source, 'stream', stream, 'ids', id, 'op', op)
    return {stream, op}
  end
end
