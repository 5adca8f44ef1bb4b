-- wrk ... -s post.lua URL -- BODY_FILE "NAME: VALUE" ...: posts that file with those headers, and ends with
-- a line of JSON.

function init(args)
   local file = assert(io.open(args[1], "rb"))
   wrk.method = "POST"
   wrk.body = file:read("*a")
   for index = 2, #args do
      local name, value = args[index]:match("^([^:]+): (.*)$")
      wrk.headers[name] = value
   end
   file:close()
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "microseconds": %d, "median": %d, "p99": %d, "worst": %d, ' ..
      '"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
