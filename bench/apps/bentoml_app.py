"""A model of `work.py` on BentoML.

cd bench/apps; WORK=linear MODEL=main.onnx BATCH_SIZE=32 bentoml serve bentoml_app:App --port 8000
curl --json '[[4.0]]' http://127.0.0.1:8000/predict

Its documentation recommends adaptive batching for models that take rows together, a worker a core, and
paths for files; a batchable method takes and returns a list, so rows of JSON come in one.
"""

from pathlib import Path
from typing import Any

import bentoml
import work

BATCHES = {"batchable": True, "max_batch_size": work.BATCH_SIZE} if work.BATCH_SIZE > 1 else {}


class Rows:
    def __init__(self) -> None:
        self.model = work.opened()

    @bentoml.api(**BATCHES)
    def predict(self, rows: list[list[float]], /) -> list[list[float]]:
        return self.model.answers([self.model.decode(row) for row in rows])


class File:
    def __init__(self) -> None:
        self.model = work.opened()

    @bentoml.api
    def predict(self, file: Path, /) -> Any:
        return self.model.answers([self.model.decode(file.read_bytes())])[0]


App = bentoml.service(Rows if work.KIND.json else File, name="app", workers=work.WORKERS)
