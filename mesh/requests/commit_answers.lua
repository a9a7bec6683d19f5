-- Runs a reading command again, and compares its answer with the one that the handler got. A part of commit_seldom.lua.
-- From position `at`, `tx` has: how to compare (list, set or hash), number of elements of the handler's answer, number of
-- words of the command, the words of the command, and the elements.
local function make_answer_check()
  -- By reading command: the command that counts the members of its key, and how many elements of the answer each member
  -- makes. If the number of members has changed, the key is not read, because it may have grown beyond all bounds.
  local count_command = {HGETALL = 'HLEN', SMEMBERS = 'SCARD'}
  local elements_per_member = {HGETALL = 2, SMEMBERS = 1}

  -- Returns whether the key still has as many members as the handler's answer, with `element_count` elements, showed.
  local function has_as_many(verb, key, element_count)
    if not count_command[verb] then return true end
    local members = redis.pcall(count_command[verb], key)
    return type(members) == 'number' and members * elements_per_member[verb] == element_count
  end

  -- Each function compares an answer with as many elements of tx, which stand after position `before`. A set or hash has
  -- nothing twice. So it is enough to find all that the answer has among these elements.
  local compare = {}
  function compare.list(answer, before)
    for k = 1, #answer do
      if tostring(answer[k]) ~= tx[before + k] then return false end
    end
    return true
  end

  function compare.set(answer, before)
    local known = {}
    for k = 1, #answer do known[tx[before + k]] = true end
    for k = 1, #answer do
      if not known[answer[k]] then return false end
    end
    return true
  end

  function compare.hash(answer, before)
    local known = {}
    for k = 1, #answer, 2 do known[tx[before + k]] = tx[before + k + 1] end
    for k = 1, #answer, 2 do
      if known[answer[k]] ~= answer[k + 1] then return false end
    end
    return true
  end

  return function(at)
    local element_count, last = tonumber(tx[at + 1]), at + 2 + tonumber(tx[at + 2])
    if not has_as_many(tx[at + 3], tx[at + 4], element_count) then return false end
    local answer = redis.pcall(unpack(tx, at + 3, last))
    if not answer then answer = {} end
    if type(answer) ~= 'table' then answer = {answer} end
    return not answer.err and #answer == element_count and compare[tx[at]](answer, last)
  end
end
