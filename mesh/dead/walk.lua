-- Calls `act(id, fields)` for each chosen letter. Letters are chosen by their own ids; or all letters between two ids that
-- have one reason and one stream. The script reads one letter at a time, because a body may be large. The length of a walk
-- is bounded. The walk ends early if `act` returns a text, which says why a letter cannot be dealt with.
-- ARGV 1 to 6: id after which to begin ("-": the first letter), last id, most letters to act on, most letters to look at,
--       reason, stream
-- The ids of named letters are ARGV[named] and all later arguments. If no letter is named, all letters with the reason and the
-- stream are chosen.
-- Returns how many letters `act` has dealt with, how many named letters are gone, the id to go on after ("": there are no
-- more letters), and the text of `act` or ""
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

-- A walk ends after it has read so many bytes, because larger reads would keep the server from other work.
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
