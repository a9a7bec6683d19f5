-- Reads a dead letter. A part of look.lua, replay.lua and discard.lua. `fields` has its names and values in turn. The letter's
-- own fields come first, and `deliveries` is the last of them. All other fields are those of the request or event. A letter of
-- an older release has no field `kind`: its stream tells whether this was a request or event. Returns the letter's own fields
-- by name, and the position of the first other field.
local function parse_letter(fields)
  local letter, i = {}, 1
  while i < #fields do
    local name = fields[i]
    letter[name] = fields[i + 1]
    i = i + 2
    if name == 'deliveries' then break end
  end
  local stream = letter.stream or ''
  -- 14 is the length of the prefix of request streams.
  letter.kind = letter.kind or (string.sub(stream, 1, 14) == 'mesh:requests:' and 'request' or 'event')
  return letter, i
end
