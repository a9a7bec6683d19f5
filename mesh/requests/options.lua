-- The options of requests. A part of the scripts that add, move or end requests; it stands after append.lua. Options are
-- fields of a request's entry. For a request with options there is also another key in Redis, which these functions keep up
-- to date until the request ends:
--   once, sha, keep   idempotency key, SHA-1 of the body, how long (ms) the answer is kept; the other key is in once.lua
--   limit             a place in a lane, or the mark that a rate has let the request through; the other key is in limits.lua

-- Creates the functions for options. That costs as much as a command. So scripts that seldom need these functions call this
-- only when they meet the first request with options.
local function make_options()
  local options = {}

  -- Returns the values of fields by their names. `flat` is a list: name, value, name, value, ...
  function options.named(flat)
    local fields = {}
    for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
    return fields
  end

  -- Returns whether an entry has options. `fields` are its fields by name.
  function options.has(fields) return fields.op and (fields.once or fields.limit) end

  --[[ once.lua ]]
  options.once = once

  -- This part defines `make_limits`.
  --[[ limits.lua ]]
  local limits
  function options.limits()
    limits = limits or make_limits(options)
    return limits
  end

  -- Frees the idempotency key of a request that ends, and its place in its lane. `answer` has the fields status, body, from,
  -- asked and db of the reply, or is nil if there is no answer. All other calls that wait for the request get this answer.
  -- With `keeps_answer`, later calls with the key get it, too.
  function options.ended(fields, answer, keeps_answer)
    if not options.has(fields) then return end
    if fields.once then once.ended(fields, answer, keeps_answer) end
    if fields.limit then options.limits().ended(fields.limit) end
  end

  -- Notes where a request is from now on: the entry `id` of a stream; or, with the stream "mesh:later", the waiting request
  -- with the name `id`. Its idempotency key then expires no earlier than `ttl_ms` and the field `keep` from now; a later expiry
  -- stays. A `ttl_ms` of nil stands for no deadline.
  function options.moved(fields, stream, id, ttl_ms)
    if not options.has(fields) then return end
    if fields.once then once.moved(fields, stream, id, ttl_ms) end
    if fields.limit then options.limits().moved(fields.limit, stream, id) end
  end

  return options
end
