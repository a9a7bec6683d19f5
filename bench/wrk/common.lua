-- Shared by all loads: each thread has its own address, and the result is one line of JSON.
local ports, threads = {}, 0
for port in os.getenv('BENCH_PORTS'):gmatch('%d+') do ports[#ports + 1] = port end

function setup(thread)
  threads = threads + 1
  thread.addr = wrk.lookup('127.0.0.1', ports[(threads - 1) % #ports + 1])[1]
  thread:set('seed', tonumber(os.getenv('BENCH_SEED')) + threads)
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"calls": %d, "seconds": %.6f, "median_ms": %.4f, "p99_ms": %.4f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
