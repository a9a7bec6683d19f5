-- Runs a reading command again, and compares its answer with the one that the handler got. A part of commit_seldom.lua.
-- From position `at`, `tx` has: how to compare (list, set or hash), number of elements of the handler's answer, number of
-- words of the command, the words of the command, and the elements.
local function make_answers()
  -- By reading command: the command that counts the members of its key, and how many elements of the answer each member
  -- makes. If the number of members has changed, the key is not read, because it may have grown beyond all bounds.
  local counts = {HGETALL = 'HLEN', SMEMBERS = 'SCARD'}
  local per_count = {HGETALL = 2, SMEMBERS = 1}

  local function has_size(verb, key, number)
    if not counts[verb] then return true end
    local count = redis.pcall(counts[verb], key)
    return type(count) == 'number' and count * per_count[verb] == number
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
    local number, last = tonumber(tx[at + 1]), at + 2 + tonumber(tx[at + 2])
    if not has_size(tx[at + 3], tx[at + 4], number) then return false end
    local answer = redis.pcall(unpack(tx, at + 3, last))
    if not answer then answer = {} end
    if type(answer) ~= 'table' then answer = {answer} end
    return not answer.err and #answer == number and compare[tx[at]](answer, last)
  end
end
