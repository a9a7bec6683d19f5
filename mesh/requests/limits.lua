-- Applies the limits of operations (`Limit`): a request goes to its stream, or waits in mesh:later until its limit allows it.
-- The caller gives the limit of a request as text:
--   lane <concurrency> <lane>                        at most `concurrency` requests of the lane are on streams; the others
--                                                    wait in order
--   rate <µs> <burst> delay|refuse <lane>            `burst` requests begin at once, then one after each <µs> (GCRA). A
--                                                    request that comes too soon is delayed or refused
-- A lane is "<op>:<value>". A rate has no places: its lane is only the name under which its requests are counted.
-- The entry of a request has the field `limit`, so that scripts that end or move it find its lane.
-- Below, `limit` is the text above, and `limit_field` is this field:
--   lane <concurrency> <name> <lane>    the keys of the lane know the request by `name`, which never changes
--   rate <lane>
-- Keys:
--   mesh:running:{lane}   hash     requests that have a place in the lane: name -> "<stream> <id>", or "mesh:later <name>"
--                                  while the request waits for its next try, or is parked. Below, `running` is this key
--   mesh:lane:{lane}      list     names of the requests that wait for a place, in order; the requests are in mesh:later
--   mesh:lanes            set      lanes in which a request has a place, or waits for one
--   mesh:rate:{lane}      string   "<accepted> <written> <begun>", all in µs. `written` is the time of the last change. The
--                                  other two are theoretical arrival times (GCRA): each request moves such a time on by one
--                                  interval. `accepted` counts all accepted requests, `begun` only those that have begun
--   mesh:later:{name}     hash     a request that waits; while a rate delays it, its field `rate` is "<µs> <burst> <lane>".
--                                  A request that was sent for later also has `wants`, the limit to apply when it is due,
--                                  and `ttl`, the time (ms) from then to its deadline
-- A script includes this file after append.lua.
local function make_limits(options)
  local limits, named = {}, options.named
  local time = redis.call('TIME')
  local now_us = time[1] * 1000000 + time[2]
  local now_ms = math.floor(now_us / 1000)

  -- Returns the concurrency, the name and the lane of `limit_field`; nothing if the limit is a rate.
  local function lane_of(limit_field) return string.match(limit_field, '^lane (%d+) (%S+) (.*)$') end

  -- Returns a true value if a request is still where it was. `location` is "<stream> <id>", or "mesh:later <name>".
  local function request_exists_at(location)
    local stream, id = string.match(location, '^(%S+) (.*)$')
    if stream == 'mesh:later' then return redis.pcall('ZSCORE', stream, id) end
    local entries = redis.pcall('XRANGE', stream, id, id)  -- an error has no elements
    return #entries > 0
  end

  -- Returns the three times of a rate; three zeros if the key is absent, or if somebody has written something else there.
  local function read_rate(lane)
    local text = redis.pcall('GET', 'mesh:rate:' .. lane)
    local accepted_us, written_us, begun_us =
      string.match(type(text) == 'string' and text or '', '^(%d+) (%d+) (%d+)$')
    return tonumber(accepted_us or 0), tonumber(written_us or 0), tonumber(begun_us or 0)
  end

  local function write_rate(lane, accepted_us, begun_us)
    -- Once both times have passed, the key says no more than an absent one. So it expires then: rounded up, and one ms later,
    -- so that it never expires too early.
    local lasting_ms = math.ceil((math.max(accepted_us, begun_us) - now_us) / 1000) + 1
    local text = string.format('%.0f %.0f %.0f', accepted_us, now_us, begun_us)
    redis.call('SET', 'mesh:rate:' .. lane, text, 'PX', string.format('%.0f', lasting_ms))
  end

  -- Returns when (µs) the next request may begin if only the requests that have begun count, and `begun_us` after it.
  -- No request begins before its time, so `begun_us` is at most a burst ahead of the clock. If it is further ahead, the
  -- server's clock has stepped back, or a new release has a smaller burst or interval. Then `begun_us` is lowered to a burst
  -- ahead of the clock.
  local function earliest_start(interval_us, burst, begun_us)
    begun_us = math.max(math.min(begun_us, now_us + burst * interval_us), now_us) + interval_us
    return begun_us - burst * interval_us, begun_us
  end

  -- Returns when (µs) the next request may begin, and the values of `accepted_us` and `begun_us` after it.
  -- The server's clock may have stepped back. Then a rate that refuses moves both values back by the same step: otherwise it
  -- would refuse every request until the clock has caught up. A rate that delays keeps them, because the requests that wait
  -- keep the times that they got before the step.
  local function next_start(interval_us, burst, when_too_soon, lane)
    local accepted_us, written_us, begun_us = read_rate(lane)
    local step_us = when_too_soon == 'refuse' and math.max(written_us - now_us, 0) or 0
    accepted_us, begun_us = accepted_us - step_us, begun_us - step_us
    accepted_us = math.max(accepted_us, now_us) + interval_us
    local earliest_us, begun_after_us = earliest_start(interval_us, burst, begun_us)
    local begins_us = math.max(accepted_us - burst * interval_us, earliest_us)
    return begins_us, accepted_us, begins_us <= now_us and begun_after_us or begun_us
  end

  -- By lane: the value that `begun_us` would have if the requests that this run of the script has postponed had begun. So each
  -- postponed request gets a time one interval later than the one before.
  local postponed_us = {}
  -- Counts a delayed request, whose time has come, as begun. `rate_field` is the field `rate` of its hash. If the rate does
  -- not allow that yet, returns a later time (ms). This happens when the times of several requests have passed while no replica
  -- ran, or the server was down. The rate then lets them begin one after the other.
  function limits.begin(rate_field)
    local interval_us, burst, lane = string.match(rate_field, '^(%d+) (%d+) (.*)$')
    local accepted_us, _, begun_us = read_rate(lane)
    local begins_us, begun_after_us =
      earliest_start(tonumber(interval_us), tonumber(burst), postponed_us[lane] or begun_us)
    if begins_us <= now_us then return write_rate(lane, accepted_us, begun_after_us) end
    postponed_us[lane] = begun_after_us
    return string.format('%.0f', math.ceil(begins_us / 1000))
  end

  -- Puts a request into mesh:later, where it waits until `due` (ms). The field `first` keeps the time at which the mesh
  -- accepted the request: now, on the clock by which append.lua makes ids.
  local function let_wait(name, to, words, due)
    local accepted_ms = math.max(now_ms, ms_of_clock(redis.call('MGET', 'mesh:clock')[1]))
    redis.call('HSET', 'mesh:later:' .. name, 'to', to, 'first', string.format('%.0f-0', accepted_ms), unpack(words))
    -- The hash may have these fields from an earlier wait of the request, for its time or for a rate.
    redis.call('HDEL', 'mesh:later:' .. name, 'wants', 'ttl', 'rate')
    redis.call('ZADD', 'mesh:later', due, name)
  end

  -- Puts waiting requests on their streams, the oldest first, while the lane has free places. The oldest request says how many
  -- places the lane has. So when an upgrade changes the concurrency, requests of the earlier release still begin under the old
  -- number, and the new number applies after them.
  local function fill_places(lane)
    local running, list_key = 'mesh:running:' .. lane, 'mesh:lane:' .. lane
    -- Each pass removes one name from the list, or is the last one.
    while true do
      local name = redis.call('LINDEX', list_key, 0)
      if not name then
        if redis.call('HLEN', running) == 0 then redis.pcall('SREM', 'mesh:lanes', lane) end
        return
      end
      local entry_key = 'mesh:later:' .. name
      local flat, words = redis.call('HGETALL', entry_key), {}
      local fields = named(flat)
      -- The hash of a request that was cancelled or has expired is empty. Then only its name leaves the list.
      if fields.to and fields.limit then
        -- The inner parentheses keep only the first result of `lane_of`: the concurrency.
        if redis.call('HLEN', running) >= tonumber((lane_of(fields.limit))) then return end
        for i = 1, #flat, 2 do
          if flat[i] ~= 'to' then words[#words + 1], words[#words + 2] = flat[i], flat[i + 1] end
        end
        local stream = 'mesh:requests:' .. fields.to
        local id = append(stream, unpack(words))
        -- The stream takes no entry, for instance because its key has another type. The next sweep tries again.
        if type(id) == 'table' then return end
        redis.call('ZREM', 'mesh:later', name)
        redis.call('DEL', entry_key)
        local deadline = tonumber(fields.deadline or '0')
        -- Without a deadline, the idempotency key expires in about a year, and 0 leaves that as it is.
        options.moved(fields, stream, id, deadline == 0 and 0 or math.max(deadline - now_ms, 0))
      end
      redis.call('LPOP', list_key)
    end
  end

  local function place_in_lane(name, to, words, concurrency, lane, deadline)
    local running = 'mesh:running:' .. lane
    -- If somebody has overwritten this key, the sweep does not look at the lane until the key is deleted.
    redis.pcall('SADD', 'mesh:lanes', lane)
    words[#words + 1], words[#words + 2] = 'limit', 'lane ' .. concurrency .. ' ' .. name .. ' ' .. lane
    if redis.call('EXISTS', 'mesh:lane:' .. lane) == 0 and redis.call('HLEN', running) < tonumber(concurrency) then
      local stream = 'mesh:requests:' .. to
      local id = append(stream, unpack(words))
      if type(id) == 'string' then redis.call('HSET', running, name, stream .. ' ' .. id) end
      return id
    end
    -- The request waits until it gets a place, or until its deadline, at which wake.lua ends it. '0' stands for no deadline.
    let_wait(name, to, words, deadline == '0' and '+inf' or deadline)
    redis.call('RPUSH', 'mesh:lane:' .. lane, name)
    -- The lane may have a free place although other requests wait: a stream may have refused the entry of the oldest one.
    fill_places(lane)
  end

  local function place_by_rate(name, to, words, interval_us, burst, when_too_soon, lane)
    local begins_us, accepted_us, begun_us = next_start(interval_us, burst, when_too_soon, lane)
    write_rate(lane, accepted_us, begun_us)
    words[#words + 1], words[#words + 2] = 'limit', 'rate ' .. lane
    if begins_us <= now_us then return append('mesh:requests:' .. to, unpack(words)) end
    let_wait(name, to, words, string.format('%.0f', math.ceil(begins_us / 1000)))
    redis.call('HSET', 'mesh:later:' .. name, 'rate', string.format('%.0f %.0f %s', interval_us, burst, lane))
  end

  -- Puts a request on its stream, or into mesh:later until its limit allows it. `words` are the fields of its entry, among them
  -- the deadline. Returns the id of the entry, the error of a stream that takes no entry, or nothing if the request waits.
  function limits.place(limit, name, to, words, deadline)
    local concurrency, lane = string.match(limit, '^lane (%d+) (.*)$')
    if lane then return place_in_lane(name, to, words, concurrency, lane, deadline) end
    local interval_us, burst, when_too_soon
    interval_us, burst, when_too_soon, lane = string.match(limit, '^rate (%d+) (%d+) (%a+) (.*)$')
    return place_by_rate(name, to, words, tonumber(interval_us), tonumber(burst), when_too_soon, lane)
  end

-- This part defines `read_error`.
--[[ read_error.lua ]]

  -- Returns why a request cannot be placed now: a code, and the key, lane or error that it is about. refusals.py and
  -- settlement.py know the codes. If the request can be placed, returns nil, nil, and whether it will wait.
  -- mesh:later takes no request beyond `most_waiting`. Before this request, the caller will place `earlier_count` requests with
  -- the same limit.
  function limits.refusal(limit, deadline, most_waiting, earlier_count)
    -- mesh:later is checked first, also for a request that need not wait: enter.lua lets some requests wait in spite of the
    -- code 'limited'.
    local later_count = redis.pcall('ZCARD', 'mesh:later')
    local code, about = read_error(later_count, 'mesh:later')
    if code then return code, about end
    local later_is_full = later_count >= most_waiting
    local concurrency, lane = string.match(limit, '^lane (%d+) (.*)$')
    if lane then
      local running_count = redis.pcall('HLEN', 'mesh:running:' .. lane)
      local waiting_count = redis.pcall('LLEN', 'mesh:lane:' .. lane)
      code, about = read_error(running_count, 'mesh:running:' .. lane)
      if not code then code, about = read_error(waiting_count, 'mesh:lane:' .. lane) end
      if code then return code, about end
      local must_wait = waiting_count > 0 or running_count + (earlier_count or 0) >= tonumber(concurrency)
      if must_wait and later_is_full then return 'too-many', '' end
      return nil, nil, must_wait
    end
    local interval_us, burst, when_too_soon
    interval_us, burst, when_too_soon, lane = string.match(limit, '^rate (%d+) (%d+) (%a+) (.*)$')
    code, about = read_error(redis.pcall('GET', 'mesh:rate:' .. lane), 'mesh:rate:' .. lane)
    if code then return code, about end
    local begins_us = next_start(tonumber(interval_us), tonumber(burst), when_too_soon, lane)
      + (earlier_count or 0) * interval_us
    if begins_us <= now_us then return end
    local begins_ms = math.ceil(begins_us / 1000)
    -- A request that would wait beyond its deadline is refused at once, so that its caller does not wait in vain.
    if when_too_soon == 'refuse' or (deadline ~= '0' and begins_ms >= tonumber(deadline)) then
      return 'limited', string.format('%.0f ', begins_ms - now_ms) .. lane
    end
    if later_is_full then return 'too-many', '' end
    return nil, nil, true
  end

  -- Frees the place of a request that has ended, or removes its name from the list. An error here must not undo the end of the
  -- request, so this function ignores errors, and the sweep repairs the lane (`limits.repair`).
  function limits.ended(limit_field)
    local _, name, lane = lane_of(limit_field)
    if not lane then return end
    pcall(function()
      if redis.call('HDEL', 'mesh:running:' .. lane, name) == 0 then redis.call('LREM', 'mesh:lane:' .. lane, 1, name) end
      fill_places(lane)
    end)
  end

  -- Notes the new stream and id of a request that has a place in its lane. `options.moved` calls this. HSET fails if the key
  -- holds another type: then the lane does not know where the request is, and the request goes on.
  function limits.moved(limit_field, stream, id)
    local _, name, lane = lane_of(limit_field)
    if lane then redis.pcall('HSET', 'mesh:running:' .. lane, name, stream .. ' ' .. id) end
  end

  -- Returns whether a request waits for a place in its lane; a false value for a rate, too.
  function limits.waits(limit_field)
    local _, name, lane = lane_of(limit_field)
    return lane and redis.pcall('HEXISTS', 'mesh:running:' .. lane, name) == 0
  end

  -- Returns where a request is that waited for its limit: a stream and an id, or "mesh:later" and a name. Returns nothing for a
  -- request that waited for a rate and has begun, because no key says where it is.
  function limits.find(limit, name)
    if redis.call('ZSCORE', 'mesh:later', name) then return 'mesh:later', name end
    local lane = string.match(limit, '^lane %d+ (.*)$')
    if not lane then return end
    local location = redis.pcall('HGET', 'mesh:running:' .. lane, name)
    if type(location) == 'string' then return string.match(location, '^(%S+) (.*)$') end
  end

  -- Frees the places of requests that have ended without `limits.ended`: somebody deleted their entries by hand, or a replica
  -- of a release without lanes ended them. Each call checks at most `places_left` places in all, in at most `most_lanes` random
  -- lanes. An error in one lane, whose keys may have another type, must not keep the others from being repaired.
  function limits.repair(most_lanes, places_left)
    for _, lane in ipairs(redis.pcall('SRANDMEMBER', 'mesh:lanes', most_lanes)) do
      pcall(function()
        local running = 'mesh:running:' .. lane
        local names_and_locations = redis.call('HRANDFIELD', running, places_left, 'WITHVALUES')
        places_left = places_left - #names_and_locations / 2
        for name, location in pairs(named(names_and_locations)) do
          if not request_exists_at(location) then redis.call('HDEL', running, name) end
        end
        fill_places(lane)
      end)
    end
  end
  return limits
end
