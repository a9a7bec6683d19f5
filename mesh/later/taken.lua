-- Takes a request from its stream.
local function leave(stream, id)
  redis.call('XACK', stream, 'workers', id)
  redis.call('XDEL', stream, id)
end

-- Reads a request that is pending for a consumer, so that it can wait elsewhere.
-- Returns its fields as words, the same by name, and its name among those that wait; or nothing. The caller writes it
-- elsewhere, and then calls `leave`.
local function taken(stream, id, consumer)
  local pending = redis.pcall('XPENDING', stream, 'workers', id, id, 1, consumer)
  if pending.err or #pending == 0 then return end
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if not entry then return leave(stream, id) end
  -- Lua can pass some 8000 words to a function; an entry written by hand may have more.
  local fields = {unpack(entry[2], 1, 4000)}
  local named = {}
  for i = 1, #fields, 2 do named[fields[i]] = fields[i + 1] end
  if not string.match(named.first or '', '^%d+%-%d+$') then named.first = id end
  -- The parts of one request have one key, so the first id tells them apart. A request without a caller has a key of its
  -- own.
  local name = named.request or ''
  if (named.reply_to or '') ~= '' or name == '' then name = name .. '@' .. named.first end
  -- The field `limit` has the name as one word.
  name = string.gsub(name, '%s', '_')
  -- Requests written by hand may have one key, or a key with spaces.
  if redis.call('EXISTS', 'mesh:later:' .. name) == 1 then name = name .. '@' .. id end
  return fields, named, name
end
