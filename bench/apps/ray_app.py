"""A model of `work.py` on Ray Serve.

WORK=linear MODEL=main.onnx WORKERS=2 BATCH_SIZE=32 PORT=8000 python bench/apps/ray_app.py
curl --json '[4.0]' http://127.0.0.1:8000/

Its documentation recommends for throughput: RAY_SERVE_THROUGHPUT_OPTIMIZED=1, which is set for it; more
requests for a replica than the default of 5; batches by `serve.batch`; no access log.
RAY_SERVE_ENABLE_HA_PROXY=1 puts HAProxy in front of the replicas, instead of Ray's own proxy in Python.
"""

import os
import signal
import threading

import ray
import work
from ray import serve
from starlette.requests import Request

MAX_ONGOING_REQUESTS = 256


@serve.deployment(
    num_replicas=work.WORKERS,
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    ray_actor_options={"num_cpus": 1},
    logging_config={"log_level": "ERROR", "enable_access_log": False},
)
class App:
    def __init__(self):
        self.model = work.opened()

    @serve.batch(max_batch_size=max(work.BATCH_SIZE, 1), batch_wait_timeout_s=work.WAIT_MS / 1000)
    async def batch(self, rows):
        return self.model.answers(rows)

    async def __call__(self, request: Request):
        body = await (request.json() if self.model.json else request.body())
        row = self.model.decode(body)
        return await self.batch(row) if work.BATCH_SIZE > 1 else self.model.answers([row])[0]


if __name__ == "__main__":
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    ray.init(num_cpus=work.WORKERS, include_dashboard=False, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    serve.run(App.bind(), route_prefix="/")
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
