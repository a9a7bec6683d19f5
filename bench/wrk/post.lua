-- POST /values with BENCH_ITEMS new numbers of 64 bits in each request.
dofile(os.getenv('BENCH_COMMON'))

local items, ttl = tonumber(os.getenv('BENCH_ITEMS')), os.getenv('BENCH_TTL')
local classes = {}
for class in os.getenv('BENCH_CLASSES'):gmatch('%a') do classes[#classes + 1] = class end

function init(args)
  math.randomseed(seed)
  wrk.method = 'POST'
  wrk.headers['Content-Type'] = 'application/json'
end

-- A double has 53 bits, so the digits are drawn in two parts; 2^63 <= number < 2^64.
local function item(n)
  return string.format('{"value":%d%09d,"ttl":%s,"cls":"%s"}', math.random(9223372037, 18446744072),
    math.random(0, 999999999), ttl, classes[n % #classes + 1])
end

local sent = 0
function request()
  local parts = {}
  for n = 1, items do
    sent = sent + 1
    parts[n] = item(sent)
  end
  return wrk.format(nil, nil, nil, '[' .. table.concat(parts, ',') .. ']')
end
