"""The models of a chaos run: small archives, each with a habit of its own.

    for model in MODELS:
        write_model(store, model, seen=Path("seen"))

Every handler writes the ids of the rows that it begins into a file: a row that was computed twice is in it
twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.server.archives import write_archive

FIRST_VERSION = "1.0"
RESPONSE_TIMEOUT_S = 15
"""Seconds after which the server kills a worker that was stopped for good."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the run. `workers` is the number that it starts with, and ends with."""

    name: str
    workers: int = 1
    batch_size: int = 1
    seconds: float = 0.0
    """Time that the handler takes for each batch, unless a row asks for more."""
    share: str = ""
    loading_s: float = 0.0
    has_child: bool = False
    """Whether each worker starts a process of its own, which must end with it."""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "responseTimeout": RESPONSE_TIMEOUT_S,
            "startupTimeout": RESPONSE_TIMEOUT_S,
            **self.settings,
        }
        if self.share:
            config["torchport_server"] = {"shared_worker": self.share}
        return config


ECHO = Model(name="echo", workers=2)
SLOW = Model(name="slow", workers=2, has_child=True)
BATCHING = Model(name="batching", batch_size=8, seconds=0.01)
SHARED = (Model(name="shared-a", share="pair"), Model(name="shared-b", share="pair"))
FAILING = Model(name="failing")
ROLLED = Model(name="rolled")
VISITOR = Model(name="visitor", loading_s=0.3, settings={"startupTimeout": 20})
TENSORS = Model(name="tensors")
LEFT = Model(name="left", batch_size=4, seconds=0.03)
"""The model whose clients leave before they have an answer."""
TARGET = Model(name="target")
"""The model that hostile bodies are sent to."""

MODELS = (ECHO, SLOW, BATCHING, *SHARED, FAILING, ROLLED, VISITOR, TENSORS, LEFT, TARGET)
SCALED = (ECHO, BATCHING, SLOW)
"""Models whose number of workers changes during the run."""

HANDLER = """
    import json
    import os
    import subprocess
    import time

    SECONDS, LOADING_S, HAS_CHILD, SEEN = @SETTINGS@

    seen = os.open(SEEN, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    child = subprocess.Popen(["sleep", "3600"]) if HAS_CHILD else None
    time.sleep(LOADING_S)


    class PredictionException(Exception):
        def __init__(self, message, error_code):
            super().__init__(message)
            self.message, self.error_code = message, error_code


    def asked(row):
        value = row["data"] if "data" in row else row.get("body")
        if isinstance(value, (bytes, bytearray)):
            try:
                value = json.loads(bytes(value))
            except (ValueError, RecursionError):
                value = None
        return value if isinstance(value, dict) else {}


    def answer(row, index, context):
        verb = row.get("verb")
        if verb == "raise":
            raise ValueError("failed on request")
        if verb == "refuse":
            raise PredictionException(row.get("message"), 422)
        if verb == "exit":
            os._exit(3)
        if verb == "status":
            context.set_response_status(code=row["status"], phrase="as asked", idx=index)
        version = context.manifest["model"]["modelVersion"]
        return {"id": row.get("id"), "version": version, "padding": "x" * row.get("padding", 0)}


    def handle(data, context):
        if data is None:
            return None
        rows = [asked(row) for row in data]
        os.write(seen, "".join(f"{row['id']}\\n" for row in rows if "id" in row).encode())
        time.sleep(max([SECONDS, *(row.get("seconds", 0.0) for row in rows)]))
        return [json.dumps(answer(row, index, context)) for index, row in enumerate(rows)]
"""

TENSOR_HANDLER = """
    from torchport_runtime import Signature


    class Handler:
        signatures, backends = {"main": Signature()}, {}

        def initialize(self, context):
            pass

        def handle(self, data, context):
            return ["no tensors"] * len(data)
"""

TENSOR_RUNTIME = """
from collections import namedtuple

TensorRequest = namedtuple("TensorRequest", "graph inputs outputs")


class Signature:
    def to_json(self):
        tensor = {"dtype": "float32", "shape": ["batch", 2]}
        return {"inputs": {"x": tensor}, "outputs": {"y": tensor}}


def run_tensors(handler, requests):
    return [{"y": request.inputs["x"] * 2} for request in requests]
"""


def write_model(store: Path, model: Model, *, seen: Path, version: str = FIRST_VERSION) -> Path:
    """The archive of one version of a model. `seen` is the file of the ids that handlers have begun."""
    if model is TENSORS:
        files = {"torchport_runtime/__init__.py": TENSOR_RUNTIME.encode()}
        # The key says that the archive takes tensors, also while no worker is there that could say so.
        config = {**model.config, "torchport": {"backend": "onnxruntime"}}
        return write_archive(store, model.name, TENSOR_HANDLER, version=version, config=config, files=files)
    settings = repr((model.seconds, model.loading_s, model.has_child, str(seen)))
    handler = HANDLER.replace("@SETTINGS@", settings)
    return write_archive(store, model.name, handler, version=version, config=model.config)
