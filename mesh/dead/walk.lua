-- Calls `act(id, fields)` for each chosen letter: those named, or all with one reason and stream between two ids, which
-- are read one by one, because a body may be large. A walk is bounded, and ends early when `act` returns a word.
-- ARGV 1 to 6: after this id ("-": from the first), up to this id, most letters to act on, most to look at, reason, stream
-- The ids of named letters begin at ARGV[`named`]; with none, the reason and the stream choose.
-- Returns how many `act` was called for, how many of the named are gone, the id to go on after ("": it is done), the word
local function chosen(letter) return letter.reason == ARGV[5] and letter.stream == ARGV[6] end

local function walk_named(named, act)
  local called, gone = 0, 0
  for i = named, #ARGV do
    local entry = redis.call('XRANGE', dead_key, ARGV[i], ARGV[i])[1]
    if entry then
      local word = act(entry[1], entry[2])
      if word then return called, gone, '', word end
      called = called + 1
    else
      gone = gone + 1
    end
  end
  return called, gone, '', ''
end

local MOST_BYTES = 16 * 1024 * 1024
local function walk_all(act)
  local after, called, bytes = ARGV[1], 0, 0
  for _ = 1, tonumber(ARGV[4]) do
    local from = after == '-' and '-' or '(' .. after
    local entry = redis.call('XRANGE', dead_key, from, ARGV[2], 'COUNT', 1)[1]
    if not entry then return called, 0, '', '' end
    for _, word in ipairs(entry[2]) do bytes = bytes + #word end
    if chosen(parse(entry[2])) then
      local word = act(entry[1], entry[2])
      if word then return called, 0, '', word end
      called = called + 1
    end
    after = entry[1]
    if called == tonumber(ARGV[3]) or bytes > MOST_BYTES then break end
  end
  return called, 0, after, ''
end

local function walk(named, act)
  if #ARGV >= named then return walk_named(named, act) end
  return walk_all(act)
end
