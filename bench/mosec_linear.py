"""The linear model on mosec, as its documentation has it: what torchport serve is measured beside.

MODEL=main.onnx BATCH_SIZE=32 WAIT_MS=1 python bench/mosec_linear.py --address 127.0.0.1 --port 8000
curl --json '[4.0]' http://127.0.0.1:8000/inference
"""

import os

import numpy as np
import onnxruntime
from mosec import Server, Worker


class Linear(Worker):
    def __init__(self):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )

    def forward(self, data):
        batched = isinstance(data[0], list)
        (y,) = self.session.run(["y"], {"x": np.array(data if batched else [data], np.float32)})
        return y.tolist() if batched else y[0].tolist()


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Linear,
        num=1,
        max_batch_size=int(os.environ["BATCH_SIZE"]),
        max_wait_time=int(os.environ["WAIT_MS"]),
    )
    server.run()
