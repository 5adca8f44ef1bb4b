"""Runs the Open Inference Protocol's tensors on a model's graphs."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from torchport.server.wire import LARGE, Answer, InferRow, Tensor
from torchport.server.worker.sanitizing import status_of, text_of


def answer_tensors(handler: Any, rows: list[InferRow]) -> list[Answer]:
    """Answer all rows with the archive's runtime, equal sizes together."""
    try:
        runtime = _own_runtime()
    except ImportError:
        message = b"this archive was packaged before it could take tensors: package it again"
        return [Answer(status=400, body=message, error="BadRequestException")] * len(rows)
    requests = [
        runtime.TensorRequest(row.graph, {t.name: _array(t) for t in row.inputs}, tuple(row.outputs))
        for row in rows
    ]
    answers = []
    for result in runtime.run_tensors(handler, requests):
        if isinstance(result, Exception):
            status = status_of(getattr(result, "http_status", 500))
            kind = "BadRequestException" if status < 500 else "InternalServerException"
            answers.append(Answer(status=status, body=text_of(result).encode(), error=kind))
        else:
            tensors = [_tensor(name, array) for name, array in result.items()]
            answers.append(Answer(status=200, body=b"", tensors=tensors))
    return answers


def _own_runtime() -> Any:
    """The module of the archive's runtime that takes tensors.

    Raises:
        ImportError: the runtime takes no tensors.
    """
    runtime = importlib.import_module("torchport_runtime")
    if hasattr(runtime, "run_tensors"):
        return runtime
    # Archives that were packaged before the runtime had folders.
    return importlib.import_module("torchport_runtime.tensor_requests")


def _array(tensor: Tensor) -> np.ndarray:
    # The front has held the number of bytes against the shape.
    array = np.frombuffer(tensor.data, dtype=np.dtype(tensor.dtype)).reshape(tensor.shape)
    # Behind an odd number of bytes of JSON, or of another tensor, no backend reads it as it should be read.
    return array if array.flags.aligned else array.copy()


def _tensor(name: str, array: np.ndarray) -> Tensor:
    whole = np.ascontiguousarray(array)
    # A large one is copied to where it is sent from.
    data: Any = whole.tobytes() if whole.nbytes < LARGE else whole.reshape(-1).view(np.uint8).data
    return Tensor(name, array.dtype.name, list(array.shape), data)
