#!lua flags=allow-oom
-- Writes which operations a replica serves, and removes those that no live replica serves any more.
-- KEYS: operations, served
-- ARGV: databases, digest of the replica's table, 1 to write definitions over others, 0 to write missing ones,
--       then operation, definition, ...; without these the script only looks
-- Returns 1 if the table of this digest and the definition of each of its operations are there, else 0
local operations_key, served_key = KEYS[1], KEYS[2]
local databases, digest, overwrites = tonumber(ARGV[1]), ARGV[2], ARGV[3] == '1'

local function each_name(text, visit)
  for name in string.gmatch(text, '%S+') do visit(name) end
end

local names = {}
for i = 4, #ARGV, 2 do
  names[#names + 1] = ARGV[i]
  if overwrites then
    redis.call('HSET', operations_key, ARGV[i], ARGV[i + 1])
  else
    redis.call('HSETNX', operations_key, ARGV[i], ARGV[i + 1])
  end
end
if #names > 0 then redis.call('HSET', served_key, digest, table.concat(names, ' ')) end

local live, kept, gone = {[digest] = true}, {}, {}
for n = 0, databases - 1 do
  local its = redis.call('HGET', 'mesh:replica:' .. n, 'serves')
  if its then live[its] = true end
end
local tables = redis.call('HGETALL', served_key)
for i = 1, #tables, 2 do
  if live[tables[i]] then
    each_name(tables[i + 1], function(name) kept[name] = true end)
  else
    redis.call('HDEL', served_key, tables[i])
    gone[#gone + 1] = tables[i + 1]
  end
end
-- The release that is gone may have written the definition of an operation that others serve, too: they write theirs
-- again when they look next.
for _, text in ipairs(gone) do
  each_name(text, function(name) redis.call('HDEL', operations_key, name) end)
end
for _, name in ipairs(redis.call('HKEYS', operations_key)) do
  if not kept[name] then redis.call('HDEL', operations_key, name) end
end

local ours = redis.call('HGET', served_key, digest)
if not ours then return 0 end
local complete = 1
each_name(ours, function(name)
  if redis.call('HEXISTS', operations_key, name) == 0 then complete = 0 end
end)
return complete
