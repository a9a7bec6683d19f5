-- The options of requests, for the scripts that add, move or end requests. Options are fields of the entry. A request
-- with options also has another key in Redis, which these functions keep up to date until the request ends:
--   once, sha, keep   its idempotency key, the SHA-1 of its body, and how long (ms) its answer is kept: see once.lua
--   limit             its place in a lane, or that a rate has let it through: see limits.lua
-- Stands in scripts after append.lua.
-- Creating functions costs as much as a command, so a script calls this for its first request with options.
local function make_options()
  local options = {}

  function options.named(flat)
    local fields = {}
    for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
    return fields
  end

  -- Returns whether an entry has options. `fields` are its fields by name.
  function options.has(fields) return fields.op and (fields.once or fields.limit) end

  --[[ once.lua ]]
  options.once = once

  --[[ limits.lua ]]
  local limits
  function options.limits()
    limits = limits or make_limits(options)
    return limits
  end

  -- Frees the key and the place of a request that ends. `answer` (status, body, from, asked, db), if there is one, goes to
  -- the other callers that wait for it. `keeps` says that later calls with the key get it, too.
  function options.ended(fields, answer, keeps)
    if not options.has(fields) then return end
    if fields.once then once.ended(fields, answer, keeps) end
    if fields.limit then options.limits().ended(fields.limit) end
  end

  -- A request is somewhere else from now on: an entry of a stream, or (stream "mesh:later") it waits. It stays for at least
  -- so many ms; none: it has no deadline.
  function options.moved(fields, stream, id, ms)
    if not options.has(fields) then return end
    if fields.once then once.moved(fields, stream, id, ms) end
    if fields.limit then options.limits().moved(fields.limit, stream, id) end
  end

  return options
end
