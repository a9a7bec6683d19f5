-- Sends requests that may have to wait. A part of commit.lua and submit.lua, after append.lua and options.lua. Of these
-- parts it uses only `append`: the caller passes the functions of options.lua.

-- Stores a request in mesh:later until it is due: at "<ms>" (Unix time), or "+<ms>" from now. `words` are the fields of its
-- entry. Its limit ("" for none) is applied when it is due. Returns how long it waits (ms); or the error of Redis if
-- mesh:later is not a sorted set.
local function delay(name, to, due, limit, words)
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if string.sub(due, 1, 1) == '+' then due = string.format('%.0f', now + string.sub(due, 2)) end
  local added_or_error = redis.pcall('ZADD', 'mesh:later', due, name)
  if type(added_or_error) == 'table' then return added_or_error end
  redis.call('HSET', 'mesh:later:' .. name, 'to', to, unpack(words))
  if limit ~= '' then redis.call('HSET', 'mesh:later:' .. name, 'wants', limit) end
  return math.max(due - now, 0)
end

-- Puts a request on its stream, or stores it if it must wait for its time or for its limit. Most of these requests have no
-- lane, so they get no place in one. `words` are the fields of the entry, to which this function adds those of the options.
-- `options` has the functions of options.lua. `with` has the request's options, with the names that submit.lua explains, and
-- `ttl`: the time from now to the deadline (ms), "0" for no deadline. Returns the id of the entry; nothing if the request
-- waits; or the error of Redis.
local function place(options, with, op, name, to, words, deadline, reply_to)
  local stream, wait_ms, id = 'mesh:requests:' .. to, 0, nil
  local function add_field(field, value) words[#words + 1], words[#words + 2] = field, value end
  if with.once then
    add_field('once', with.once)
    add_field('sha', with.sha)
    add_field('keep', string.format('%.0f', with.keep))
  end
  if with.due then
    wait_ms = delay(name, to, with.due, with.limit or '', words)
    if type(wait_ms) == 'table' then return wait_ms end
  elseif with.limit then
    id = options.limits().place(with.limit, name, to, words, deadline)
  else
    id = append(stream, unpack(words))
  end
  if type(id) == 'table' then return id end
  if with.once then
    local ttl_ms = with.ttl ~= '0' and with.ttl or nil
    options.once.open(op, with.once, with.sha, name, id and stream or 'mesh:later', id or name, with.keep, ttl_ms, wait_ms)
    options.once.wait(op, with.once, name, deadline, reply_to)
  end
  return id
end
