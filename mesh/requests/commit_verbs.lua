-- The verbs of transactions that are not commands of Redis. A part of commit_seldom.lua, and so of commit.lua. A verb returns
-- an error reply if it fails. Any other result is ignored. After an error, the verbs before it and the sends stay applied, and
-- the request is delivered again, or buried after its last delivery. So before the first write, the commit checks all that can
-- make a verb fail. These names come from other files:
--   commit.lua          tx (the words of all transactions), head (tx[head] is the first word of the present transaction),
--                       books_key, consumer, accepted, answered, ending
--   commit_seldom.lua   frees; options (the functions of options.lua, once make_options() has made them)
--   append.lua          ms_of_clock
--   place.lua           delay, place
--   options.lua         make_options
--   further_fields.lua  further_fields
-- A verb may add to `accepted` and `answered`, which the commit adds to the books at its end: that takes one command for the
-- whole batch. It may also count with HINCRBY at once, as `later` and `place` do. The books then say the same.
-- The words of one command are tx[first], its verb, to tx[last].
--   set-all, until_ms, value, key, ...
--       Set each key to the value, with its expiry at `until_ms` (Unix time).
--   mark, key, bits, below, number, ...
--       Set the bits of these numbers in a filter of `bits` bits (see filters.py). Numbers below `below` are skipped: the
--       filter has all of them.
--   keep, key, until_ms
--       Let the key live at least until `until_ms`. The commit sets this expiry after all writes of the batch.
--   later, mesh:later, mesh:later:<name>, most waiting requests, due, name, to, op, from, ttl, body, and perhaps a limit
--       Send a request that waits until `due`: "<ms>", or "+<ms>" from now. `name` is the name of the request. The verb
--       does not read the three words before `due`: commit.lua and commit_checks.lua use them before the first write.
--   place, mesh:later, mesh:later:<name>, most waiting requests, options, name, to, op, from, body
--       Send a request with a limit or an idempotency key. Its options are JSON, with the names that submit.lua explains: the
--       code decodes them to `with`. The verb puts the request on its stream, or lets it wait. Only a request with a limit of
--       concurrency gets a place in a lane.
--   pass, stream, deadline, body, further fields
--       Put the request of the transaction on the stream of its class, and take it off again. The replica has run its handler
--       already, without a submission: the request ran in place (see in_place.py). The further fields are one word: see
--       further_fields.lua.
--   ends, name, value, ...
--       End the options of the request that the transaction belongs to: answer the other calls with its idempotency
--       key, free this key or keep the answer in it, and free the place in a lane. The names and values are fields of
--       the request, by which options.lua finds the idempotency key and the place. The field `kept` is 1 if the answer
--       is kept for later calls with the key. This verb is the last command of its transaction.
-- A service adds verbs of its own: its Lua replaces the comment at the end of this file, and puts a function into
-- `verbs` for each verb. A verb that removes data is also put into `frees`. Then, while memory is full, the commit takes
-- the length of its arguments as the number of bytes that it removes. A verb that answers the request writes the body of
-- the reply to tx[head + 8], the word `body` of the list at the top of commit.lua. A verb that can fail although the types
-- of its keys are right calls pcall, because an error that escapes ends the commit half-way.
local function make_verbs(note_expiry)
  -- Most keys, or other words, of one command. `set_together` passes two words for each key, and Lua's `unpack` fails at about
  -- 8000 words.
  local MOST_UNPACKED = 2000

  local function set_each(first_key, last_key, value, until_ms)
    for k = first_key, last_key do
      local result = redis.pcall('SET', tx[k], value, 'PXAT', until_ms)
      if result.err then return result end
    end
  end

  -- Sets the keys in one command. A server without it answers with an error and sets nothing. Valkey has it from 9.1, Redis
  -- from 8.4.
  local has_msetex = true
  local function set_together(first_key, last_key, value, until_ms)
    local words, n = {}, 0
    for k = first_key, last_key do
      words[n + 1], words[n + 2] = tx[k], value
      n = n + 2
    end
    words[n + 1], words[n + 2] = 'PXAT', until_ms
    local result = redis.pcall('MSETEX', last_key - first_key + 1, unpack(words))
    has_msetex = type(result) ~= 'table'
  end

  local function set_all(first, last)
    local until_ms, value = tx[first + 1], tx[first + 2]
    for begin = first + 3, last, MOST_UNPACKED do
      local till = math.min(begin + MOST_UNPACKED - 1, last)
      if has_msetex then set_together(begin, till, value, until_ms) end
      if not has_msetex then
        local error_reply = set_each(begin, till, value, until_ms)
        if error_reply then return error_reply end
      end
    end
  end

  -- `limit` is applied when the request is due. `ttl` is the time (ms) from then to its deadline.
  local function send_later(first, last)
    local due, name, to, op, from, ttl, body, limit = unpack(tx, first + 4, last)
    local words = {'op', op, 'request', name, 'from', from, 'reply_to', '', 'body', body, 'ttl', ttl}
    local wait_or_error = delay(name, to, due, limit or '', words)
    if type(wait_or_error) == 'table' then return wait_or_error end
    -- `pcall`: if somebody has overwritten the books, only this count is missing.
    redis.pcall('HINCRBY', books_key, 'accepted', 1)
  end

  -- An earlier request with the same idempotency key counts for this one, so nothing is sent. If the earlier
  -- one has not ended, `wait` notes that this sender wants it done, too. `with` has the options of the request. The last
  -- two arguments of `wait` and `place` are '0' for no deadline, and '' for no reply stream: no caller waits.
  local function place_request(first, last)
    options = options or make_options()
    local json, name, to, op, from, body = unpack(tx, first + 4, last)
    local with = cjson.decode(json)
    local known = with.once and options.once.check(op, with.once, with.sha)
    if known then return known.state == 'open' and options.once.wait(op, with.once, name, '0', '') end
    local words = {'op', op, 'request', name, 'from', from, 'reply_to', '', 'deadline', '0', 'body', body}
    local id = place(options, with, op, name, to, words, '0', '')
    if type(id) == 'table' then return id end
    -- `pcall`: if somebody has overwritten the books, only this count is missing.
    redis.pcall('HINCRBY', books_key, 'accepted', 1)
  end

  -- XADD, XREADGROUP and XDEL leave the stream as every other request leaves it: its last id is at least this request's id,
  -- the group has no lag, and the entry is gone. The check has found the stream empty. So the read, which moves the group past
  -- the entry, gets no other entry. The id may be lower than those of earlier requests, on this stream and on others. But the
  -- mesh's clock is set to it, so no later request on any stream gets an id with an earlier time.
  local function note_request_in_place(first)
    local stream, deadline, body, further = unpack(tx, first + 1, first + 4)
    local id, ms = tx[head + 2], string.match(tx[head + 2], '^%d+')
    local added = redis.pcall('XADD', stream, 'NOMKSTREAM', id, 'op', tx[head + 5], 'request', tx[head + 4], 'from', consumer,
      'reply_to', tx[head + 3], 'deadline', deadline, 'body', body, unpack(further_fields(further)))
    -- XADD fails if an earlier entry of this stream had a later id, or if somebody has deleted or overwritten the stream.
    -- Nobody needs the entry.
    if added == id then
      redis.pcall('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', 1, 'NOACK', 'STREAMS', stream, '>')
      redis.call('XDEL', stream, id)
    end
    if tonumber(ms) > ms_of_clock(redis.call('MGET', 'mesh:clock')[1]) then
      redis.call('SET', 'mesh:clock', ms)
      stamp = nil  -- so that append.lua reads the clock again
    end
    accepted, answered = accepted + 1, answered + 1
  end

  local function note_ending(first, last) ending = {unpack(tx, first + 1, last)} end

  -- Sets two bits for each number from numbers[first] to numbers[last], as `_hashes` of filters.py finds them. The numbers are
  -- decimal digits. An error is ignored: if somebody has overwritten the key with another type, the filter does not count, and
  -- gathers ask the database. A BITFIELD command has little more than MOST_WORDS words, which is far below the bound of
  -- `unpack`. With more words there would be fewer commands, but each would take more memory. The other constants are those of
  -- filters.py, so that gathers look for the same bits.
  local MOST_WORDS, HASHED_DIGITS = 400, 15
  local FIRST_PRIME, FIRST_FACTOR, SECOND_PRIME, SECOND_FACTOR = 2147483647, 1640531, 2147483629, 1327217
  local function mark_numbers(key, bits, below, numbers, first, last)
    local words, n = {'BITFIELD', key}, 2
    for k = first, last do
      local digits = numbers[k]
      local is_long = #digits > HASHED_DIGITS
      local number = tonumber(is_long and string.sub(digits, -HASHED_DIGITS) or digits)
      -- If the number is long, `number` has only its last digits, which say nothing about `below`. So its bits are always set.
      if is_long or number >= below then
        words[n + 1], words[n + 2], words[n + 3], words[n + 4] =
          'SET', 'u1', number % FIRST_PRIME * FIRST_FACTOR % FIRST_PRIME % bits, 1
        words[n + 5], words[n + 6], words[n + 7], words[n + 8] =
          'SET', 'u1', number % SECOND_PRIME * SECOND_FACTOR % SECOND_PRIME % bits, 1
        n = n + 8
      end
      if n > 2 and (n > MOST_WORDS or k == last) then
        redis.pcall(unpack(words, 1, n))
        n = 2
      end
    end
  end

  local function mark(first, last)
    mark_numbers(tx[first + 1], tonumber(tx[first + 2]), tonumber(tx[first + 3]), tx, first + 4, last)
  end

  local verbs = {
    ends = note_ending, ['set-all'] = set_all, keep = note_expiry, mark = mark, later = send_later,
    place = place_request, pass = note_request_in_place,
  }
  --[[ verbs of services ]]
  return verbs
end
