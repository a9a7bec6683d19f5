-- Checks before a write that look at more than the type of a key. A part of commit_seldom.lua. Each check returns the reason
-- if the write is not possible. tx[k] is the key to check, and the later words of the command follow it.
-- A reason is the result of the transaction, which `outcome_of` of settlement.py reads. There, the reasons that begin with
-- "too-many ", "limited " or "key-reused " have a meaning of their own. After any other reason the request is delivered again,
-- or buried after its last delivery. So a new check returns a sentence, unless settlement.py gets a code for it.
-- From commit.lua it uses `tx`, `head` and `wrong_type`, and from commit_seldom.lua `seldom`, `options` and `make_options`.

-- The largest magnitude that a counter may reach. Lua rounds numbers above 2^53, and near 2^63 to multiples of 1024. So the
-- bound is a little lower than the 64 bits of Redis allow.
local MOST_INTEGER = 2 ^ 63 - 4096
-- For each counter: the sum of all its changes in this transaction, each without its sign. Nil until a counter is checked.
local change_of
-- `name` names the counter: its key, or its key and field. `text` is what it holds now, and `change` what a write adds to it.
local function wrong_counter(name, text, change)
  if text and text ~= '0' and not string.match(text, '^%-?[1-9]%d*$') then return name .. ' does not hold an integer' end
  change_of = change_of or {}
  change_of[name] = (change_of[name] or 0) + math.abs(change)
  if math.abs(text or 0) + change_of[name] > MOST_INTEGER then return name .. ' would have more than 64 bits' end
end

local function wrong_integer(k)
  local wrong = wrong_type(tx[k], 'string')
  return wrong or wrong_counter(tx[k], redis.call('GET', tx[k]), tx[k + 1])
end

local function wrong_field(k)
  local wrong = wrong_type(tx[k], 'hash')
  local name = tx[k] .. ' ' .. tx[k + 1]
  return wrong or wrong_counter(name, redis.call('HGET', tx[k], tx[k + 1]), tx[k + 2])
end

-- A stream takes no more entries when its last id is the highest possible id. This check gets the name of the key: the words
-- of the verb `place` name only the address, not the stream.
local function wrong_stream(key)
  local wrong = wrong_type(key, 'stream')
  if wrong or redis.call('EXISTS', key) == 0 then return wrong end
  local facts = redis.call('XINFO', 'STREAM', key)
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' and facts[i + 1] == '18446744073709551615-18446744073709551615' then
      return key .. ' takes no more entries: its last id is the highest there is'
    end
  end
end

-- How many requests of this transaction that were checked so far will wait in mesh:later.
local waiting_count = 0
-- Checks that mesh:later has room for one more request. tx[k] is this key, which may have tx[k + 2] members.
local function no_room_to_wait(k)
  local wrong = wrong_type(tx[k], 'zset')
  if wrong or redis.call('ZCARD', tx[k]) + waiting_count >= tonumber(tx[k + 2]) then return wrong or 'too-many ' .. tx[k] end
  waiting_count = waiting_count + 1
end

-- By limit: how many requests of this transaction with this limit were checked so far. Nil until a limit is checked.
local count_by_limit
-- Checks that a request with this limit can be sent: now, or later if the limit makes it wait.
local function wrong_limit(k, limit)
  count_by_limit = count_by_limit or {}
  local earlier_count = count_by_limit[limit] or 0
  count_by_limit[limit] = earlier_count + 1
  -- The request has no deadline: '0'.
  local code, about, waits = options.limits().refusal(limit, '0', tx[k + 2] - waiting_count, earlier_count)
  if code then return code .. ' ' .. about end
  if not waits then return wrong_stream('mesh:requests:' .. tx[k + 5]) end
  waiting_count = waiting_count + 1
end

-- Checks that the request of a verb `place` can be sent now. commit_verbs.lua lists the words of the verb.
local function wrong_place(k)
  options = options or make_options()
  local with = cjson.decode(tx[k + 3])  -- the options
  if with.once then
    -- `known` says that an earlier request has the key. Then nothing is sent, so nothing else needs a check.
    local known, code, about = options.once.check(tx[k + 6], with.once, with.sha)
    if code then return code .. ' ' .. about end
    if known then return end
  end
  if with.due then return no_room_to_wait(k) end  -- until then it needs no stream
  if with.limit then return wrong_limit(k, with.limit) end
  return wrong_stream('mesh:requests:' .. tx[k + 5])
end

-- Checks that a request may run in place, by the verb `pass`: its deadline has not passed, and no other request of its class is
-- on the stream. tx[head] is the first word of the present transaction, so tx[head + 2] is the id of its request. The replica has
-- made this id, with the time of its own estimate of the server's clock, and expiries count from this time. If it is wrong, the
-- request is submitted, and gets another id. With a smaller MOST_LATE_MS, more batches come too late that waited in the replica.
-- With a larger MOST_AHEAD_MS, one wrong estimate would let the expiries of all databases come earlier.
local MOST_LATE_MS, MOST_AHEAD_MS = 100, 20
local function wrong_pass(k)
  local time, ms = redis.call('TIME'), tonumber(string.match(tx[head + 2], '^%d+'))
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  -- If the server's clock has stepped back, the mesh's clock stands still at a later time: see append.lua.
  local latest = math.max(now, ms_of_clock(redis.call('MGET', 'mesh:clock')[1]))
  -- XLEN has an error, which is a table, if somebody has overwritten the key.
  local is_passable = redis.pcall('XLEN', tx[k]) == 0 and tonumber(tx[k + 1]) > now
    and ms >= latest - MOST_LATE_MS and ms <= now + MOST_AHEAD_MS
  if not is_passable then return 'not-passable' end
end

local special_checks = {
  bounded = no_room_to_wait, placed = wrong_place, passable = wrong_pass, integer = wrong_integer, field = wrong_field,
  stream = function(k) return wrong_stream(tx[k]) end, any = function() end,
}
-- Makes the check `wanted` of the key tx[k] and of the words after it. Returns the reason if the check fails.
function seldom.check(wanted, k)
  if special_checks[wanted] then return special_checks[wanted](k) end
  return wrong_type(tx[k], wanted)
end

-- Forgets the counts of the transaction before. `check_writes` of commit.lua calls this before it checks a transaction.
function seldom.begin_checks() change_of, count_by_limit, waiting_count = nil, nil, 0 end
