-- Takes a request from its stream. A part of defer.lua, enter.lua and park.lua, which store the request elsewhere.

-- Acknowledges a request, and removes it from its stream.
local function remove_entry(stream, id)
  redis.call('XACK', stream, 'workers', id)
  redis.call('XDEL', stream, id)
end

-- Reads a request that is pending for a consumer. The script then stores the request elsewhere, and calls `remove_entry`.
-- Returns its fields as a flat list, its fields by name (with a valid `first`), and its name in mesh:later. Returns nothing if
-- it is not pending for this consumer, or if its entry was deleted; then it is also acknowledged.
local function read_pending(stream, id, consumer)
  local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
  if pending.err or #pending == 0 then return end
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if not entry then return remove_entry(stream, id) end
  -- Lua's `unpack` fails at about 8000 words, and an entry that was written by hand may have more. The script takes over the
  -- first 4000 of them.
  local flat = {unpack(entry[2], 1, 4000)}
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  if not string.match(fields.first or '', '^%d+%-%d+$') then fields.first = id end
  -- This name begins with the name that the sender gave the request (`request`). The parts of a request that was forwarded have
  -- the same `request`, so the name of each part also has the part's first id. The `request` of a request without a caller
  -- differs from all others, so it is the whole name.
  local name = fields.request or ''
  if (fields.reply_to or '') ~= '' or name == '' then name = name .. '@' .. fields.first end
  -- A name has no spaces, because the field `limit` has the name as one word.
  name = string.gsub(name, '%s', '_')
  -- Another request may have this name, if both were written by hand with the same `request`, or with spaces in it.
  if redis.call('EXISTS', 'mesh:later:' .. name) == 1 then name = name .. '@' .. id end
  return flat, fields, name
end
