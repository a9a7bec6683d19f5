#!lua flags=allow-oom,no-writes
-- Reads dead letters, the newest first. A body may be large, so the script reads one letter at a time, and returns only the
-- beginning of its body.
-- KEYS: dead letters
-- ARGV: newest id ("+": the last letter), oldest id ("-": the first letter), maximum number of letters,
--       maximum number of bytes of a body to return
-- Returns for each letter {id, kind, stream, reason, op, deliveries, id that the request or event had, name of the request,
--       bytes of the body, beginning of the body}
local dead_key, most_body_bytes = KEYS[1], tonumber(ARGV[4])

-- This part defines `parse_letter`.
--[[ letter.lua ]]
-- The script ends after it has read this number of bytes of bodies, because longer reads would keep the server from other work.
-- A list then has fewer letters than it was asked for.
local MOST_BYTES_READ = 16 * 1024 * 1024
local letters, before, byte_count = {}, ARGV[1], 0
for _ = 1, tonumber(ARGV[3]) do
  local entry = redis.call('XREVRANGE', dead_key, before, ARGV[2], 'COUNT', 1)[1]
  if not entry then break end
  local letter, first_other = parse_letter(entry[2])
  local op, body, request_name = '', '', ''
  for i = first_other, #entry[2], 2 do
    if entry[2][i] == 'op' then op = entry[2][i + 1] end
    if entry[2][i] == 'request' then request_name = entry[2][i + 1] end
    if entry[2][i] == 'body' then body = entry[2][i + 1] end
  end
  letters[#letters + 1] = {
    entry[1], letter.kind, letter.stream or '', letter.reason or '', op, letter.deliveries or '',
    letter.id or '', request_name, #body, string.sub(body, 1, most_body_bytes),
  }
  before, byte_count = '(' .. entry[1], byte_count + #body
  if byte_count > MOST_BYTES_READ then break end
end
return letters
