-- Verbs of transactions beside those of Redis, for writes of many words. They stand inside commit.lua, where `tx` has
-- the words of a command from `first` (its verb) to `last`. A verb returns an error reply, or anything else.
--   set-all, ms, value, key, ...            SET each key to the value until that moment
--   mark, key, bits, below, number, ...   set the bits of these numbers in a filter of so many bits, which has all numbers
--                                         below the given one already; see filters.py
--   keep, key, ms                           let the key live at least until then, once all is written
--   later, mesh:later, key of the entry, most that may wait, due ("<ms>", or "+<ms>": from now), key, to, op, from, ttl, body
--                                         send a request that waits for its time; its limit may follow
--   place, mesh:later, key of the entry, most that may wait, options, key, to, op, from, body
--                                         send a request with a limit or an idempotency key; the options are JSON, as
--                                         submit.lua names them
--   ends, name, value, ...                 the request has these fields, which options.lua reads; `kept` is 1 if later calls
--                                         with its idempotency key get this answer. The last command of a transaction.
-- The Lua of services' own verbs stands at the end, each file in a block. It adds a function to `verbs` for each verb.
-- A verb that removes something has an entry in `frees`, too. A verb that only reads puts what it finds into tx[head + 8], the body
-- of the reply. If it may fail, it calls pcall.
local function make_verbs(keep)
  -- Lua can pass some 8000 words to a function.
  local PASSED = 2000

  local function set_each(first, last, value, ms)
    for k = first, last do
      local result = redis.pcall('SET', tx[k], value, 'PXAT', ms)
      if result.err then return result end
    end
  end

  -- One command, where the server has it: Valkey from 9.1, Redis from 8.4.
  local has_msetex = true
  local function set_together(first, last, value, ms)
    local words, n = {}, 0
    for k = first, last do
      words[n + 1], words[n + 2] = tx[k], value
      n = n + 2
    end
    words[n + 1], words[n + 2] = 'PXAT', ms
    local result = redis.pcall('MSETEX', last - first + 1, unpack(words))
    has_msetex = type(result) ~= 'table'
  end

  local function set_all(first, last)
    local ms, value = tx[first + 1], tx[first + 2]
    for begin = first + 3, last, PASSED do
      local till = math.min(begin + PASSED - 1, last)
      if has_msetex then set_together(begin, till, value, ms) end
      if not has_msetex then
        local failed = set_each(begin, till, value, ms)
        if failed then return failed end
      end
    end
  end

  local function later(first, last)
    local due, key, to, op, from, ttl, body, wants = unpack(tx, first + 4, last)
    local words = {'op', op, 'request', key, 'from', from, 'reply_to', '', 'body', body, 'ttl', ttl}
    local failed = delay(key, to, due, wants or '', words)
    if type(failed) == 'table' then return failed end
    redis.pcall('HINCRBY', books_key, 'accepted', 1)
  end

  -- A request whose idempotency key is in use is sent already.
  local function place_new(first, last)
    options = options or make_options()
    local json, key, to, op, from, body = unpack(tx, first + 4, last)
    local with = cjson.decode(json)
    local known = with.once and options.once.check(op, with.once, with.sha)
    if known then return known.state == 'open' and options.once.wait(op, with.once, key, '0', '') end
    local words = {'op', op, 'request', key, 'from', from, 'reply_to', '', 'deadline', '0', 'body', body}
    local id = place(options, with, op, key, to, words, '0', '')
    if type(id) == 'table' then return id end
    redis.pcall('HINCRBY', books_key, 'accepted', 1)
  end

  local function ends(first, last) ending = {unpack(tx, first + 1, last)} end

  -- Sets the two bits of each number of a list; the numbers are decimal digits. `_hashes` of filters.py finds the same bits.
  -- If the key does not hold bits, no gather reads them, and the database is asked.
  local MOST, HASHED = 400, 15
  local ONE, ONE_TIMES, OTHER, OTHER_TIMES = 2147483647, 1640531, 2147483629, 1327217
  local function mark_numbers(key, bits, below, numbers, first, last)
    local words, n = {'BITFIELD', key}, 2
    for k = first, last do
      local digits = numbers[k]
      local is_long = #digits > HASHED
      local number = tonumber(is_long and string.sub(digits, -HASHED) or digits)
      if is_long or number >= below then
        words[n + 1], words[n + 2], words[n + 3], words[n + 4] = 'SET', 'u1', number % ONE * ONE_TIMES % ONE % bits, 1
        words[n + 5], words[n + 6], words[n + 7], words[n + 8] = 'SET', 'u1', number % OTHER * OTHER_TIMES % OTHER % bits, 1
        n = n + 8
      end
      if n > 2 and (n > MOST or k == last) then
        redis.pcall(unpack(words, 1, n))
        n = 2
      end
    end
  end

  local function mark(first, last)
    mark_numbers(tx[first + 1], tonumber(tx[first + 2]), tonumber(tx[first + 3]), tx, first + 4, last)
  end

  local verbs = {
    ends = ends, ['set-all'] = set_all, keep = keep, mark = mark, later = later,
    place = place_new,
  }
  --[[ verbs of services ]]
  return verbs
end
