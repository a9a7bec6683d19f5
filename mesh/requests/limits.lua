-- Lanes and rates: they let a request go to its stream, or wait until it may. A limit is text:
--   lane <concurrency> <lane>                        at most that many requests of the lane are on streams, in order
--   rate <µs> <burst> delay|refuse <lane>            one request every so many µs, after `burst` at once (GCRA)
-- A lane is "<op>:<value>". A request that has passed its limit, or waits for it, has it in a field:
--   lane <concurrency> <name> <lane>    `name` is its name in the lane, which stays the same while the request lives
--   rate <lane>
-- What belongs to lanes and rates:
--   mesh:running:{lane}   hash     requests that have a place in the lane: name -> "<stream> <id>", or "mesh:later <name>"
--                                  while it waits for its next try, or is parked
--   mesh:lane:{lane}      list     names of those that wait for a place, in order; the requests are in mesh:later
--   mesh:lanes            set      lanes in which a request has a place, or waits for one
--   mesh:rate:{lane}      string   "<when the next request would be on time> <when this was set> <the first, of those that
--                                  have begun>", in µs: the theoretical arrival times of GCRA
--   mesh:later:{name}     hash     its field `rate` is "<µs> <burst> <lane>" while it waits for its time
-- Stands in scripts after append.lua.
local function make_limits(options)
  local limits, named = {}, options.named
  local time = redis.call('TIME')
  local now_us = time[1] * 1000000 + time[2]
  local now = math.floor(now_us / 1000)

  local function lane_of(limit) return string.match(limit, '^lane (%d+) (%S+) (.*)$') end

  local function is_there(where)
    local stream, id = string.match(where, '^(%S+) (.*)$')
    if stream == 'mesh:later' then return redis.call('ZSCORE', stream, id) end
    local found = redis.pcall('XRANGE', stream, id, id)
    return #found > 0
  end

  local function read_rate(lane)
    local found = redis.pcall('GET', 'mesh:rate:' .. lane)
    local tat, set, begun = string.match(type(found) == 'string' and found or '', '^(%d+) (%d+) (%d+)$')
    return tonumber(tat or 0), tonumber(set or 0), tonumber(begun or 0)
  end

  local function write_rate(lane, tat, begun)
    local ms = math.ceil((math.max(tat, begun) - now_us) / 1000) + 1
    redis.call('SET', 'mesh:rate:' .. lane, string.format('%.0f %.0f %.0f', tat, now_us, begun), 'PX', string.format('%.0f', ms))
  end

  -- Returns when (µs) a request may begin beside those that have begun, and the theoretical arrival time after it. No request
  -- begins before its time, so `begun` is at most so far ahead, unless the clock has stepped back.
  local function beginning(interval, burst, begun)
    begun = math.max(math.min(begun, now_us + burst * interval), now_us) + interval
    return begun - burst * interval, begun
  end

  -- Returns when (µs) a request may begin, and the theoretical arrival times after it: of all, and of those that have begun.
  -- When the clock has stepped back, a rate that refuses takes the same step. A rate that delays does not: its waiting
  -- requests keep the times that they got before the step.
  local function arrival(interval, burst, when, lane)
    local tat, set, before = read_rate(lane)
    local step = when == 'refuse' and math.max(set - now_us, 0) or 0
    tat, before = tat - step, before - step
    tat = math.max(tat, now_us) + interval
    local earliest_us, begun = beginning(interval, burst, before)
    local begins_us = math.max(tat - burst * interval, earliest_us)
    return begins_us, tat, begins_us <= now_us and begun or before
  end

  -- By lane: when (µs) the next one of those begins that could not begin in time.
  local late = {}
  -- Lets a request begin whose time has come. If its replicas or the server were away, others may have the same time by now:
  -- then the rate lets them begin one after the other. Returns when (ms) it begins, if not now.
  function limits.begin(rate)
    local interval, burst, lane = string.match(rate, '^(%d+) (%d+) (.*)$')
    local tat, _, before = read_rate(lane)
    local begins_us, begun = beginning(tonumber(interval), tonumber(burst), late[lane] or before)
    if begins_us <= now_us then return write_rate(lane, tat, begun) end
    late[lane] = begun
    return string.format('%.0f', math.ceil(begins_us / 1000))
  end

  -- Lets a request wait in "mesh:later". However late it begins, it is accepted now: `first` says when, on the mesh's clock
  -- as append.lua keeps it.
  local function wait(name, to, words, due)
    local at = math.max(now, tonumber(redis.call('GET', 'mesh:clock') or '0'))
    redis.call('HSET', 'mesh:later:' .. name, 'to', to, 'first', string.format('%.0f-0', at), unpack(words))
    redis.call('HDEL', 'mesh:later:' .. name, 'wants', 'ttl', 'rate')
    redis.call('ZADD', 'mesh:later', due, name)
  end

  -- Puts waiting requests on their streams while the lane has places, the oldest first. Each request carries the concurrency
  -- of the release that sent it. So after an upgrade the new one counts as soon as the older requests are through.
  local function let_go(lane)
    local running, list = 'mesh:running:' .. lane, 'mesh:lane:' .. lane
    while true do
      local name = redis.call('LINDEX', list, 0)
      if not name then
        if redis.call('HLEN', running) == 0 then redis.call('SREM', 'mesh:lanes', lane) end
        return
      end
      local entry_key = 'mesh:later:' .. name
      local flat, words = redis.call('HGETALL', entry_key), {}
      local fields = named(flat)
      if fields.to and fields.limit then
        if redis.call('HLEN', running) >= tonumber((lane_of(fields.limit))) then return end
        for i = 1, #flat, 2 do
          if flat[i] ~= 'to' then words[#words + 1], words[#words + 2] = flat[i], flat[i + 1] end
        end
        local stream = 'mesh:requests:' .. fields.to
        local id = append(stream, unpack(words))
        -- The stream may be a key of another type; the next sweep tries again.
        if type(id) == 'table' then return end
        redis.call('ZREM', 'mesh:later', name)
        redis.call('DEL', entry_key)
        local deadline = tonumber(fields.deadline or '0')
        options.moved(fields, stream, id, deadline == 0 and 0 or math.max(deadline - now, 0))
      end
      redis.call('LPOP', list)
    end
  end

  local function enter(name, to, words, concurrency, lane, deadline)
    local running = 'mesh:running:' .. lane
    redis.call('SADD', 'mesh:lanes', lane)
    words[#words + 1], words[#words + 2] = 'limit', 'lane ' .. concurrency .. ' ' .. name .. ' ' .. lane
    if redis.call('EXISTS', 'mesh:lane:' .. lane) == 0 and redis.call('HLEN', running) < tonumber(concurrency) then
      local stream = 'mesh:requests:' .. to
      local id = append(stream, unpack(words))
      if type(id) == 'string' then redis.call('HSET', running, name, stream .. ' ' .. id) end
      return id
    end
    wait(name, to, words, deadline == '0' and '+inf' or deadline)
    redis.call('RPUSH', 'mesh:lane:' .. lane, name)
    -- The lane may have places although others wait, if a stream has refused an entry before.
    let_go(lane)
  end

  local function take(name, to, words, interval, burst, when, lane)
    local begins_us, tat, begun = arrival(interval, burst, when, lane)
    write_rate(lane, tat, begun)
    words[#words + 1], words[#words + 2] = 'limit', 'rate ' .. lane
    if begins_us <= now_us then return append('mesh:requests:' .. to, unpack(words)) end
    wait(name, to, words, string.format('%.0f', math.ceil(begins_us / 1000)))
    redis.call('HSET', 'mesh:later:' .. name, 'rate', string.format('%.0f %.0f %s', interval, burst, lane))
  end

  -- Puts a request on its stream, or lets it wait. `words` are the fields of its entry, `deadline` one of them.
  -- Returns its id, or an error of its stream; nothing if it waits under its name.
  function limits.place(limit, name, to, words, deadline)
    local concurrency, lane = string.match(limit, '^lane (%d+) (.*)$')
    if lane then return enter(name, to, words, concurrency, lane, deadline) end
    local interval, burst, when
    interval, burst, when, lane = string.match(limit, '^rate (%d+) (%d+) (%a+) (.*)$')
    return take(name, to, words, tonumber(interval), tonumber(burst), when, lane)
  end

  -- Returns why a key cannot be used: the user of a client may not read it, or it holds another type.
  local function unusable(found, key)
    if type(found) ~= 'table' then return end
    local why = tostring(found.err)
    if string.find(why, 'NOPERM', 1, true) or string.find(why, 'ACL', 1, true) then
      return 'forbidden', why
    end
    return 'wrong-type', key
  end

  -- Returns why a request cannot be placed now, and what that is about; if it can, nothing, and whether it will wait.
  -- `most` requests may wait in all. `before` is the number of requests with the same limit that will be placed before it.
  function limits.refusal(limit, deadline, most, before)
    local is_full, waits = redis.call('ZCARD', 'mesh:later') >= most, nil
    local concurrency, lane = string.match(limit, '^lane (%d+) (.*)$')
    if lane then
      local running = redis.pcall('HLEN', 'mesh:running:' .. lane)
      local waiting = redis.pcall('LLEN', 'mesh:lane:' .. lane)
      local code, about = unusable(running, 'mesh:running:' .. lane)
      if not code then code, about = unusable(waiting, 'mesh:lane:' .. lane) end
      if code then return code, about end
      waits = waiting > 0 or running + (before or 0) >= tonumber(concurrency)
      if waits and is_full then return 'too-many', '' end
      return nil, nil, waits
    end
    local interval, burst, when
    interval, burst, when, lane = string.match(limit, '^rate (%d+) (%d+) (%a+) (.*)$')
    local code, about = unusable(redis.pcall('GET', 'mesh:rate:' .. lane), 'mesh:rate:' .. lane)
    if code then return code, about end
    local begins_us = arrival(tonumber(interval), tonumber(burst), when, lane) + (before or 0) * interval
    if begins_us <= now_us then return end
    local begins = math.ceil(begins_us / 1000)
    -- One that would wait beyond its deadline hears of it at once.
    if when == 'refuse' or (deadline ~= '0' and begins >= tonumber(deadline)) then
      return 'limited', string.format('%.0f ', begins - now) .. lane
    end
    if is_full then return 'too-many', '' end
    return nil, nil, true
  end

  -- A request is over: its place in its lane is free, or it does not wait for one any more. Nothing can keep a request
  -- from ending; what goes wrong here, the sweep repairs.
  function limits.ended(limit)
    local _, name, lane = lane_of(limit)
    if not lane then return end
    pcall(function()
      if redis.call('HDEL', 'mesh:running:' .. lane, name) == 0 then redis.call('LREM', 'mesh:lane:' .. lane, 1, name) end
      let_go(lane)
    end)
  end

  -- A request that has a place in its lane is somewhere else now.
  function limits.moved(limit, stream, id)
    local _, name, lane = lane_of(limit)
    if lane then redis.pcall('HSET', 'mesh:running:' .. lane, name, stream .. ' ' .. id) end
  end

  -- Whether a request waits for a place in its lane.
  function limits.waits(limit)
    local _, name, lane = lane_of(limit)
    return lane and redis.pcall('HEXISTS', 'mesh:running:' .. lane, name) == 0
  end

  -- Returns where a request is that has waited for its limit: a stream and an id, or "mesh:later" and a name. Nothing is
  -- known of one that its rate has let go.
  function limits.find(limit, name)
    if redis.call('ZSCORE', 'mesh:later', name) then return 'mesh:later', name end
    local lane = string.match(limit, '^lane %d+ (.*)$')
    if not lane then return end
    local where = redis.pcall('HGET', 'mesh:running:' .. lane, name)
    if type(where) == 'string' then return string.match(where, '^(%S+) (.*)$') end
  end

  -- Frees the places of requests that no script has ended: somebody deleted their entries by hand, or a replica of a
  -- release without lanes ended them. Looks at some lanes that it draws at random, and at some places in them.
  function limits.repair(lanes, places)
    for _, lane in ipairs(redis.call('SRANDMEMBER', 'mesh:lanes', lanes)) do
      pcall(function()
        local running = 'mesh:running:' .. lane
        local found = redis.call('HRANDFIELD', running, places, 'WITHVALUES')
        places = places - #found / 2
        for name, where in pairs(named(found)) do
          if not is_there(where) then redis.call('HDEL', running, name) end
        end
        let_go(lane)
      end)
    end
  end
  return limits
end
