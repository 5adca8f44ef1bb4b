"""A model of `work.py` on mosec, as mosec's documentation has it.

WORK=linear MODEL=main.onnx BATCH_SIZE=32 WAIT_MS=1 python bench/apps/mosec_app.py --port 8000
curl --json '[4.0]' http://127.0.0.1:8000/inference
"""

import work
from mosec import Server, Worker


class App(Worker):
    def __init__(self):
        super().__init__()
        self.model = work.opened()

    def deserialize(self, data):
        return super().deserialize(data) if self.model.json else data

    def forward(self, data):
        # A list of requests where batches may form, else a request.
        requests = data if work.BATCH_SIZE > 1 else [data]
        answers = self.model.answers([self.model.decode(request) for request in requests])
        return answers if work.BATCH_SIZE > 1 else answers[0]


if __name__ == "__main__":
    server = Server()
    server.append_worker(App, num=work.WORKERS, max_batch_size=work.BATCH_SIZE, max_wait_time=work.WAIT_MS)
    server.run()
