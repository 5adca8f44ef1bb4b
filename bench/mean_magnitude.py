"""The mean of a row's magnitudes: a model that costs next to nothing, so that serving is all that costs.

    torchport ship bench/mean_magnitude.py

It has no weights, and looks at every value: an answer shows whether a request came through whole.
"""

import io

import numpy as np
from torch import nn

from torchport import Recipe, Request, Serving, TensorSpec

MAX_ROWS, MAX_VALUES = 8, 1 << 20


class Mean(nn.Module):
    def forward(self, x):
        return x.abs().mean(dim=1, keepdim=True)


class MeanMagnitude(Recipe):
    """The mean magnitude of each row."""

    name, version, handler = "mean_magnitude", "1.0", "tensor"
    inputs = {"x": TensorSpec("float32", ("batch", "values"))}
    outputs = {"y": TensorSpec("float32", ("batch", 1))}
    dims = {"batch": (1, MAX_ROWS), "values": (1, MAX_VALUES)}
    backends = ships = ("onnxruntime",)
    serving = Serving(batch_size=MAX_ROWS)

    def build(self):
        return Mean()

    def samples(self):
        for rows, values in ((1, 192), (3, 1000)):
            yield {"x": rows_of(rows, values)}

    def requests(self):
        x = rows_of(2, 192)
        return [Request(body=npy(x), content_type="application/x-npy", tensors={"x": x})]


def rows_of(rows: int, values: int) -> np.ndarray:
    """Random rows, float32 [rows, values], always the same."""
    return np.random.default_rng(0).standard_normal((rows, values)).astype(np.float32)


def npy(x: np.ndarray) -> bytes:
    """The array as numpy's own file."""
    written = io.BytesIO()
    np.save(written, x)
    return written.getvalue()
