-- wrk sends the lines of a file in turn, each as the JSON body of a POST, and tells what it measured as JSON.
--
--   wrk -t1 -c32 -d10 -s tests/benchmarks/serving_load.lua URL -- FILE [RATE]
--
-- Without a rate each connection asks again as soon as it has its answer. With one, requests begin on a clock, so many a
-- second over all connections, whether or not earlier ones have been answered; `late` counts those that could not begin
-- within 2 ms of their time because every connection was waiting. One thread: the clock is this script's.

local ffi = require("ffi")
ffi.cdef [[ struct moment { long s; long ns; }; int clock_gettime(int, struct moment *); ]]

local bodies, at, moment = {}, 0, ffi.new("struct moment")
local due, step
late = 0

local function now()
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.s) * 1e3 + tonumber(moment.ns) / 1e6
end

local function wait()
  local time = now()
  due = math.max((due or time) + step, 0)
  if due < time - 2 then late = late + 1 end
  return math.max(due - time, 0)
end

function setup(thread)
  only = thread
end

function init(args)
  for line in io.lines(args[1]) do
    bodies[#bodies + 1] = wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, line)
  end
  if args[2] then
    step, delay = 1e3 / tonumber(args[2]), wait
  end
end

function request()
  at = at % #bodies + 1
  return bodies[at]
end

function done(summary, latency)
  local wrong = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "failed": %d, "p50": %.6f, "p99": %.6f, "late": %d}\n',
    summary.requests, summary.duration / 1e6,
    wrong.connect + wrong.read + wrong.write + wrong.status + wrong.timeout,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, only:get("late")))
end
