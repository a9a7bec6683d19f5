-- GET /values/{prime} with a random prime of BENCH_PRIMES each time.
dofile(os.getenv('BENCH_COMMON'))

local paths, suffix = {}, os.getenv('BENCH_SUFFIX') or ''
for prime in os.getenv('BENCH_PRIMES'):gmatch('%d+') do paths[#paths + 1] = '/values/' .. prime .. suffix end

function init(args)
  math.randomseed(seed)
end

function request()
  return wrk.format('GET', paths[math.random(#paths)])
end
