-- Runs a reading command again, and compares its answer with the one that the handler got. A part of commit_seldom.lua. `tx`
-- is the list of commit.lua with the words of all transactions. From position `start`, it has: how to compare (list, set or
-- hash), number of elements of the handler's answer, number of words of the command, the words of the command, and the
-- elements.
local function make_answer_check()
  -- By reading command: the command that counts the members of its key, and how many elements of the answer each member
  -- makes. If the number of members has changed, the key is not read, because it may have grown beyond all bounds.
  local count_command = {HGETALL = 'HLEN', SMEMBERS = 'SCARD'}
  local elements_per_member = {HGETALL = 2, SMEMBERS = 1}

  -- Returns whether the key still has as many members as the handler's answer, with `element_count` elements, showed. An
  -- error, such as that of a key which holds another type by now, counts as a change. So does an error of the reading command
  -- below.
  local function has_as_many(verb, key, element_count)
    if not count_command[verb] then return true end
    local member_count = redis.pcall(count_command[verb], key)
    return type(member_count) == 'number' and member_count * elements_per_member[verb] == element_count
  end

  -- Each function compares an answer with as many elements of tx, which stand after `position`: those of the handler's answer.
  -- A set or hash has nothing twice. So it is enough to find all that the answer has among these elements.
  local compare = {}
  function compare.list(answer, position)
    for k = 1, #answer do
      if tostring(answer[k]) ~= tx[position + k] then return false end
    end
    return true
  end

  function compare.set(answer, position)
    local expected = {}
    for k = 1, #answer do expected[tx[position + k]] = true end
    for k = 1, #answer do
      if not expected[answer[k]] then return false end
    end
    return true
  end

  function compare.hash(answer, position)
    local expected = {}
    for k = 1, #answer, 2 do expected[tx[position + k]] = tx[position + k + 1] end
    for k = 1, #answer, 2 do
      if expected[answer[k]] ~= answer[k + 1] then return false end
    end
    return true
  end

  return function(start)
    local element_count, last = tonumber(tx[start + 1]), start + 2 + tonumber(tx[start + 2])
    if not has_as_many(tx[start + 3], tx[start + 4], element_count) then return false end
    local answer = redis.pcall(unpack(tx, start + 3, last))
    -- false stands for an absent member, and is an answer without elements. A number or a text is a list of one.
    if not answer then answer = {} end
    if type(answer) ~= 'table' then answer = {answer} end
    return not answer.err and #answer == element_count and compare[tx[start]](answer, last)
  end
end
