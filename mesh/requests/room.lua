-- The server compares its memory with `maxmemory` only before a script begins. The script of a large batch also compares,
-- so that the batch does not take the memory beyond the limit: it answers as the server does when memory is full. Where the
-- server does not tell its memory, there is room.
-- `stored` is how many words the batch may store, and `bytes` how long they are together.
-- A batch that stores fewer bytes is small.
local SMALL = 131072
-- About how many bytes the server needs for a short word that becomes an entry of a hash or a sorted set.
local WORD = 128
local needed = bytes + stored * WORD
if not memory_is_full and needed >= SMALL then
  local memory = redis.pcall('INFO', 'memory')
  local function number(name) return tonumber(string.match(memory, '\n' .. name .. ':(%d+)') or 0) end
  local limit = type(memory) == 'string' and number('maxmemory') or 0
  -- The server does not count the buffers of copies and of the append-only file either.
  if limit > 0 and number('used_memory') - number('mem_not_counted_for_evict') + needed > limit then
    return redis.error_reply('OOM the batch would exceed maxmemory')
  end
end
