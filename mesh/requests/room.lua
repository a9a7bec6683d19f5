-- Refuses a batch that would take the server's memory beyond `maxmemory`, with the error that the server itself answers when
-- its memory is full. The server compares its memory with the limit only before a script begins, and a large batch may go
-- beyond the limit afterwards. If the server does not tell its memory, the batch is not refused.
-- A part of commit.lua and submit.lua, which set three names before it: `words_to_store` is how many words the batch may store,
-- `bytes` (from batch.lua) is the length of all its words, and `memory_is_full` is true in the variant for a full memory.
-- A batch that needs fewer bytes than SMALL is not refused here, and costs no INFO. With a larger SMALL, batches may exceed
-- the limit by more; with a smaller one, more batches cost an INFO.
local SMALL = 131072
-- About how many bytes the server needs for a short word that becomes an entry of a hash or a sorted set. With a larger number,
-- batches are refused although they would fit; with a smaller one, they may exceed the limit by more.
local BYTES_A_WORD = 128
local needed = bytes + words_to_store * BYTES_A_WORD
if not memory_is_full and needed >= SMALL then
  local memory = redis.pcall('INFO', 'memory')
  local function figure(name) return tonumber(string.match(memory, '\n' .. name .. ':(%d+)') or 0) end
  local maxmemory = type(memory) == 'string' and figure('maxmemory') or 0
  -- Like the server, this does not count the buffers of copies and of the append-only file.
  if maxmemory > 0 and figure('used_memory') - figure('mem_not_counted_for_evict') + needed > maxmemory then
    return redis.error_reply('OOM the batch would exceed maxmemory')
  end
end
