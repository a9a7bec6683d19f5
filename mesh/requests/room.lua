-- The server compares its memory with `maxmemory` only before a script begins. The script of a large batch also compares,
-- so that the batch does not take the memory beyond the limit. Where the server does not tell its memory, there is room.
-- A batch that stores fewer bytes is small.
local SMALL = 131072
-- About how many bytes the server needs for a short word that becomes an entry of a hash or a sorted set.
local WORD = 128
-- Returns whether a batch would take the memory beyond the limit. `words` is how many words it may store, and `bytes` how
-- long they are together.
local function has_no_room(words, bytes)
  bytes = bytes + words * WORD
  if bytes < SMALL then return false end
  local memory = redis.pcall('INFO', 'memory')
  if type(memory) ~= 'string' then return false end
  local function number(name) return tonumber(string.match(memory, '\n' .. name .. ':(%d+)') or 0) end
  local limit = number('maxmemory')
  -- The server does not count the buffers of copies and of the append-only file either.
  return limit > 0 and number('used_memory') - number('mem_not_counted_for_evict') + bytes > limit
end
