-- The options of requests, for the scripts that add, move or end them. Options are fields of the entry, and something else
-- in Redis belongs to such a request until it ends:
--   once, sha, keep   its idempotency key, the SHA-1 of its body, and how long (ms) its answer is kept: see once.lua
-- Creating functions costs as much as a command, so a script calls this for its first request with options.
local function make_options()
  local options = {}

  function options.named(flat)
    local fields = {}
    for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
    return fields
  end

  -- Whether an entry has options; of its fields by name.
  function options.has(fields) return fields.once and fields.op end

  --[[ once.lua ]]
  options.once = once

  -- Does what belongs to the end of a request. `answer` (status, body, from, asked, db) goes to whoever else waits for it,
  -- where there is one. `keeps` says that later calls get it, too.
  function options.ended(fields, answer, keeps)
    if options.has(fields) then once.ended(fields, answer, keeps) end
  end

  -- A request is somewhere else from now on, for at least so many ms: an entry of a stream, or (stream "mesh:later") it waits.
  function options.moved(fields, stream, id, ms)
    if options.has(fields) then once.moved(fields, stream, id, ms) end
  end

  return options
end
