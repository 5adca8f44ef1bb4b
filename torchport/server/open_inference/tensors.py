"""Tensors of the Open Inference Protocol: datatype, shape, JSON or bytes.

    tensor_of_json("x", "FP32", [2, 1], b"[1.0, 2.0]")
    tensor_of_bytes("x", "FP16", [2], b"...")          # row-major, little-endian

A tensor made here has exactly the bytes that its shape asks for. The worker relies on that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from torchport.server.errors import ApiError, InvalidRequest, RequestTooLarge
from torchport.server.http.parsing import let_others_run
from torchport.server.open_inference.json_data import PIECE, pieces_of_json
from torchport.server.wire import Tensor

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""The protocol's datatypes, with numpy's names. BYTES and BF16 are missing: signatures do not know them."""

_DATATYPE_OF = {dtype: datatype for datatype, dtype in DATATYPES.items()}

EXPANSION = 4
"""Maximum size of a request's tensors, over `max_request_size`: `1,` in JSON becomes eight bytes of INT64."""

MAX_DIMENSIONS = 32
MAX_TENSORS = 1000


class NotFinite(ApiError):
    """The model's answer is NaN or Inf, which JSON cannot hold."""

    http_status = 422
    kind = "BadRequestException"


def datatype_of(dtype: str) -> str:
    """The protocol's name of a dtype, or else the dtype's own."""
    return _DATATYPE_OF.get(dtype, dtype)


def tensor_of_json(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Tensor:
    """Make a tensor from JSON: numbers in row-major order.

    `data` is one array, or arrays nested as the shape says.

    Raises:
        InvalidRequest: the datatype is unknown, the shape is invalid or does not fit, or the datatype
            cannot hold the values.
    """
    dtype, _ = _dtype(name, datatype), _count(name, shape)
    return _joined(name, datatype, dtype, shape, pieces_of_json(name, shape, data))


def tensor_of_values(name: str, datatype: str, shape: Sequence[int], pieces: Iterable[list[Any]]) -> Tensor:
    """Make a tensor from values in row-major order, some thousands at a time.

    Raises:
        InvalidRequest: as `tensor_of_json`.
    """
    dtype, count = _dtype(name, datatype), _count(name, shape)
    tensor = _joined(name, datatype, dtype, shape, pieces)
    found = len(tensor.data) // dtype.itemsize
    if found != count:
        raise InvalidRequest(
            f"input {name[:40]!r}: its shape {list(shape)} asks for {count} values, its contents have {found}"
        )
    return tensor


def _joined(
    name: str, datatype: str, dtype: np.dtype[Any], shape: Sequence[int], pieces: Iterable[list[Any]]
) -> Tensor:
    converted = []
    for values in pieces:
        converted.append(_bytes_of(name, datatype, dtype, values))
        let_others_run()
    return Tensor(name, dtype.name, list(shape), b"".join(converted))


def _bytes_of(name: str, datatype: str, dtype: np.dtype[Any], values: list[Any]) -> bytes:
    kinds = set(map(type, values))
    if dtype.kind == "b":
        expected = "true and false"
        fits = kinds <= {bool}
    elif dtype.kind == "f":
        expected = f"numbers that {datatype} can hold"
        fits = kinds <= {int, float}
    else:
        limits = np.iinfo(dtype)
        expected = f"whole numbers from {limits.min} to {limits.max}"
        fits = kinds <= {int} and limits.min <= min(values) and max(values) <= limits.max
    array = None
    if fits:
        try:
            with np.errstate(over="ignore"):
                array = np.array(values, dtype)
        except OverflowError:  # Of a whole number that no float can hold.
            pass
    if array is None or (dtype.kind == "f" and not np.isfinite(array).all()):
        raise InvalidRequest(f"input {name[:40]!r}: {expected} are expected in its data, which is {datatype}")
    return array.tobytes()


def tensor_of_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Tensor:
    """Make a tensor from its bytes, which are not copied.

    Raises:
        InvalidRequest: the datatype is unknown, the shape is invalid, or the number of bytes does not fit it.
    """
    dtype, count = _dtype(name, datatype), _count(name, shape)
    if len(data) != count * dtype.itemsize:
        raise InvalidRequest(
            f"input {name[:40]!r}: {len(data)} bytes, its shape {list(shape)} of {datatype} asks for "
            f"{count * dtype.itemsize}"
        )
    if dtype.kind == "b" and bytes(data).translate(None, b"\0\1"):
        raise InvalidRequest(f"input {name[:40]!r}: a byte of BOOL is 0 or 1")
    return Tensor(name, dtype.name, list(shape), cast(bytes, data))


def values_of(tensor: Tensor) -> Iterator[list[Any]]:
    """A tensor's values in row-major order, as Python's numbers, some thousands at a time."""
    array = np.frombuffer(tensor.data, np.dtype(tensor.dtype))
    for start in range(0, len(array), PIECE):
        yield array[start : start + PIECE].tolist()


def require_finite(tensor: Tensor) -> None:
    """Raise `NotFinite` if the tensor holds NaN or Inf."""
    dtype = np.dtype(tensor.dtype)
    if dtype.kind == "f" and not np.isfinite(np.frombuffer(tensor.data, dtype)).all():
        raise NotFinite(
            f"the model's answer to this input is NaN or Inf in {tensor.name!r}, which JSON cannot say: ask "
            "for binary data"
        )


def require_size(tensors: Sequence[Tensor], max_request_size: int) -> None:
    """Raise `RequestTooLarge` if the tensors are much larger than the message that they came in."""
    size, limit = sum(len(tensor.data) for tensor in tensors), EXPANSION * max_request_size
    if size > limit:
        raise RequestTooLarge(
            f"the inputs have {size} bytes as tensors: at most {limit}, {EXPANSION} times max_request_size, "
            "are expected"
        )


def require_distinct(kind: str, names: Sequence[str]) -> None:
    """Raise `InvalidRequest` if a name comes twice or there are too many."""
    if len(names) > MAX_TENSORS:
        raise InvalidRequest(f"{len(names)} {kind}s: at most {MAX_TENSORS} are expected")
    seen = set[str]()
    for name in names:
        if name in seen:
            raise InvalidRequest(f"{kind} {name[:40]!r} comes twice")
        seen.add(name)


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    if datatype == "BYTES":
        raise InvalidRequest(
            f"input {name[:40]!r}: BYTES: no model's graph takes text, and numbers are expected "
            f"({', '.join(DATATYPES)}). Text goes to the model's handler: POST /predictions/NAME"
        )
    if datatype not in DATATYPES:
        raise InvalidRequest(
            f"input {name[:40]!r}: datatype {datatype[:40]!r}: one of {', '.join(DATATYPES)} is expected"
        )
    return np.dtype(DATATYPES[datatype])


def _count(name: str, shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    if len(shape) > MAX_DIMENSIONS:
        raise InvalidRequest(
            f"input {name[:40]!r}: a shape of {len(shape)} dimensions: at most {MAX_DIMENSIONS} are expected"
        )
    if any(size < 1 for size in shape):
        raise InvalidRequest(f"input {name[:40]!r}: shape {list(shape)}: sizes of at least 1 are expected")
    return math.prod(shape)
