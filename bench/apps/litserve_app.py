"""A model of `work.py` on LitServe.

WORK=linear MODEL=main.onnx WORKERS=2 BATCH_SIZE=32 PORT=8000 python bench/apps/litserve_app.py
curl --json '[4.0]' http://127.0.0.1:8000/predict

Its documentation recommends for many requests: `fast_queue` (ZeroMQ instead of a process-shared queue),
several workers a device, and batches. An API server a worker is its default. A request that is no JSON comes
as FastAPI's raw body, which spares LitServe a form.
"""

import os
from typing import Annotated

import litserve
import work
from fastapi import Body, Request

ASKED = Request if work.KIND.json else Annotated[bytes, Body(media_type="application/octet-stream")]


class App(litserve.LitAPI):
    def setup(self, device):
        self.model = work.opened()

    def decode_request(self, request: ASKED):
        return self.model.decode(request)

    def batch(self, inputs):
        return inputs

    def predict(self, x):
        return self.model.answers(x) if work.BATCH_SIZE > 1 else self.model.answers([x])[0]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    waiting = {"batch_timeout": work.WAIT_MS / 1000} if work.BATCH_SIZE > 1 else {}
    server = litserve.LitServer(
        App(max_batch_size=work.BATCH_SIZE, **waiting),
        accelerator="cpu",
        workers_per_device=work.WORKERS,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error", generate_client_file=False)
