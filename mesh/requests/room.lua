-- Refuses a batch that would take the server's memory beyond `maxmemory`, with the error that the server itself answers when
-- its memory is full. The server compares its memory with the limit only before a script begins, and a large batch may go
-- beyond the limit afterwards. If the server does not tell its memory, the batch is not refused.
-- `stored` is how many words the batch may store, and `bytes` the length of all its words.
-- A batch that needs fewer bytes than this is not refused here, and costs no INFO.
local SMALL = 131072
-- About how many bytes the server needs for a short word that becomes an entry of a hash or a sorted set.
local WORD = 128
local needed = bytes + stored * WORD
if not memory_is_full and needed >= SMALL then
  local memory = redis.pcall('INFO', 'memory')
  local function number(name) return tonumber(string.match(memory, '\n' .. name .. ':(%d+)') or 0) end
  local limit = type(memory) == 'string' and number('maxmemory') or 0
  -- Like the server, this does not count the buffers of copies and of the append-only file.
  if limit > 0 and number('used_memory') - number('mem_not_counted_for_evict') + needed > limit then
    return redis.error_reply('OOM the batch would exceed maxmemory')
  end
end
