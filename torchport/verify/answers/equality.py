"""Compares two answers of one model: numbers within rounding, pictures within a grey level."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchport_runtime.requests.request import Answer

RTOL, ATOL = 1e-4, 1e-6
"""Tolerances between one backend's answers in process and served. The graph is the same, but a server
batches requests as they come, and another batch size sums in another order."""

GREY_LEVELS = 1
"""Maximum difference of two pixels, of 255: a value at the edge of rounding may fall on either side."""


def same_answer(one: Any, other: Any, *, rtol: float = RTOL, atol: float = ATOL) -> bool:
    """Whether two answers are the same.

    Names, their order, texts and whole numbers must match exactly.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(
            same_answer(one[k], other[k], rtol=rtol, atol=atol) for k in one
        )
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(
            same_answer(a, b, rtol=rtol, atol=atol) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, float) or isinstance(other, float):
        both = isinstance(one, (int, float)) and isinstance(other, (int, float))
        return both and math.isclose(one, other, rel_tol=rtol, abs_tol=atol)
    if isinstance(one, bytes) and isinstance(other, bytes) and one != other:
        arrays = [_values(content) for content in (one, other)]
        return all(array is not None for array in arrays) and _close(arrays[0], arrays[1], rtol, atol)
    return bool(one == other)


def as_served(answer: Answer) -> Any:
    """An answer as a client reads it: JSON decoded, other bytes as they are."""
    value = answer.value
    if isinstance(value, (bytes, bytearray)):
        # Rows of plain numbers are written together, and are JSON already.
        is_json = answer.content_type == "application/json"
        return json.loads(bytes(value)) if is_json else bytes(value)
    return as_json(value)


def as_json(value: Any) -> Any:
    """An answer after a round trip through JSON; bytes stay bytes.

    Tuples and arrays become lists, keys become texts.
    """
    if isinstance(value, bytes):
        return value
    return json.loads(json.dumps(value, default=lambda array: array.tolist()))


def arrays_of(content: bytes) -> dict[str, np.ndarray] | None:
    """The arrays of an .npy or .npz file by name; otherwise None."""
    if not content.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        return None
    loaded = np.load(io.BytesIO(content), allow_pickle=False)
    arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    # Another archive than numpy's has members that are bytes.
    return arrays if all(isinstance(array, np.ndarray) for array in arrays.values()) else None


def _values(content: bytes) -> dict[str, np.ndarray] | None:
    """Arrays of a picture, .npy or .npz file by name; otherwise None."""
    from PIL import Image

    arrays = arrays_of(content)
    if arrays is not None:
        return arrays
    try:
        return {"picture": np.asarray(Image.open(io.BytesIO(content)))}
    except OSError:
        return None


def _close(
    one: dict[str, np.ndarray] | None, other: dict[str, np.ndarray] | None, rtol: float, atol: float
) -> bool:
    if one is None or other is None or list(one) != list(other):
        return False
    for name, a in one.items():
        b = other[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if name == "picture":
            if np.abs(a.astype(np.int64) - b.astype(np.int64)).max(initial=0) > GREY_LEVELS:
                return False
        elif not np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
            return False
    return True
