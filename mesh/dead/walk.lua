-- Calls `act(id, flat)` for each chosen letter. The caller names letters by their ids, or chooses a group: all letters
-- between two ids that have one reason and one stream. The script reads one letter at a time, because a body may be large.
-- A part of replay.lua and discard.lua, after letter.lua. These scripts name `dead_key`, the key of the letters. A walk ends
-- early if `act` returns a text, which says why a letter cannot be dealt with. Several bounds keep a walk short: the named ids
-- are few (see `_ids_by_step` in letters.py), and ARGV 3 and 4 and MOST_BYTES_READ bound a walk over a group.
-- ARGV:
--   1, 2   id after which to begin ("-": at the first letter), last id
--   3, 4   maximum number of letters to act on, and of letters to look at
--   5, 6   reason, stream
-- The ids of named letters are ARGV[first_named] and all later arguments. They are chosen whatever their reason and stream.
-- Without any id, the letters of the group are chosen.
-- Returns four values:
--   how many letters `act` has dealt with
--   how many named letters do not exist any more
--   the id after which the next walk begins; "" if there are no more letters
--   the text of `act` that ended the walk, or ""
-- A field that a letter lacks counts as "", as letters.py reads it.
local function is_in_group(letter) return (letter.reason or '') == ARGV[5] and (letter.stream or '') == ARGV[6] end

local function walk_named(first_named, act)
  local acted_count, gone_count = 0, 0
  for i = first_named, #ARGV do
    local entry = redis.call('XRANGE', dead_key, ARGV[i], ARGV[i])[1]
    if entry then
      local refusal = act(entry[1], entry[2])
      if refusal then return acted_count, gone_count, '', refusal end
      acted_count = acted_count + 1
    else
      gone_count = gone_count + 1
    end
  end
  return acted_count, gone_count, '', ''
end

-- A walk over a group ends after it has read this number of bytes, because longer reads would keep the server from other work.
local MOST_BYTES_READ = 16 * 1024 * 1024
local function walk_group(act)
  local after, acted_count, byte_count = ARGV[1], 0, 0
  for _ = 1, tonumber(ARGV[4]) do
    local from = after == '-' and '-' or '(' .. after
    local entry = redis.call('XRANGE', dead_key, from, ARGV[2], 'COUNT', 1)[1]
    if not entry then return acted_count, 0, '', '' end
    for _, word in ipairs(entry[2]) do byte_count = byte_count + #word end
    if is_in_group(parse_letter(entry[2])) then
      local refusal = act(entry[1], entry[2])
      if refusal then return acted_count, 0, '', refusal end
      acted_count = acted_count + 1
    end
    after = entry[1]
    if acted_count == tonumber(ARGV[3]) or byte_count > MOST_BYTES_READ then break end
  end
  return acted_count, 0, after, ''
end

local function walk(first_named, act)
  if #ARGV >= first_named then return walk_named(first_named, act) end
  return walk_group(act)
end
