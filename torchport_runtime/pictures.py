"""Pictures of generative models: arrays to pixels, sheets and PNG files.

It also reads what a client asks of such a model: how many pictures, from which seed.

    z = noise(seed=7, n=16, shape=(8,))                       # float32 [16, 8]
    png(sheet(to_pixels(decoder(z)), enlarge=8))              # bytes
    sampling(request)                                         # {"seed": 7, "n": 16}

A seed means the same numbers for ever: they come from `numpy.random.RandomState`, whose stream numpy keeps
unchanged. Row i of a seed is the same for every n.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from torchport_runtime.errors import BadRequest
from torchport_runtime.requests.request import InferenceRequest
from torchport_runtime.suggest import did_you_mean

MAX_SEED, MAX_N, DEFAULT_N = 2**32 - 1, 64, 16
GAP_LEVEL = 96
"""Grey level, 0 to 255, between the pictures of a sheet. It keeps dark ones from running together."""


def to_pixels(images: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Convert float images [n, 1 or 3, height, width] to uint8.

    `low` becomes 0 and `high` 255. Values outside are clipped, values between are rounded to the nearest
    (halves to even).

    Raises:
        ValueError: another shape.
        BadRequest: NaN or Inf, which are no colour (422).
    """
    _check_shape(images)
    if not np.isfinite(images).all():
        raise BadRequest("the model's picture for this input holds NaN or Inf", status=422)
    scaled = (images.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def sheet(pixels: np.ndarray, enlarge: int = 1) -> np.ndarray:
    """Arrange pictures on a sheet: uint8 [height, width] or [height, width, 3].

    They come row by row, in ceil(sqrt(n)) columns. Each pixel becomes a square of `enlarge` x `enlarge`,
    without smoothing. Between two pictures lies a gap as wide as one such square. A single picture is only
    enlarged.
    """
    _check_shape(pixels)
    count, channels, height, width = pixels.shape
    rows, columns = _grid(count)
    canvas = np.full((rows * (height + 1), columns * (width + 1), channels), GAP_LEVEL, np.uint8)
    for index, picture in enumerate(pixels):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        canvas[top : top + height, left : left + width] = picture.transpose(1, 2, 0)
    large = canvas[:-1, :-1].repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    return large[:, :, 0] if channels == 1 else large


def cut_sheet(drawn: np.ndarray, count: int, size: tuple[int, int], enlarge: int = 1) -> np.ndarray:
    """Cut a sheet into its pictures: uint8 [count, channels, height, width].

    Raises:
        ValueError: the sheet does not fit `count` pictures of `size` (height, width), enlarged.
    """
    (height, width), (rows, columns) = size, _grid(count)
    expected = (enlarge * (rows * (height + 1) - 1), enlarge * (columns * (width + 1) - 1))
    if drawn.shape[:2] != expected:
        raise ValueError(f"a sheet of {drawn.shape[:2]} pixels, {expected} is expected")
    small = drawn[::enlarge, ::enlarge].reshape(*drawn[::enlarge, ::enlarge].shape[:2], -1)
    corners = [(i // columns * (height + 1), i % columns * (width + 1)) for i in range(count)]
    cells = [small[top : top + height, left : left + width] for top, left in corners]
    return np.stack(cells).transpose(0, 3, 1, 2)


def png(drawn: np.ndarray) -> bytes:
    """Encode uint8 [height, width] or [height, width, 3] as PNG, reproducibly."""
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def noise(seed: int, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, float32 [n, *shape]."""
    return np.random.RandomState(seed).standard_normal((n, *shape)).astype(np.float32)


def choices(seed: int, n: int, low: int, high: int) -> np.ndarray:
    """Equally likely whole numbers from `low` to `high`, int64 [n].

    They are independent of the `noise` of the same seed.
    """
    uniform = np.random.RandomState([seed, 1]).random_sample(n)
    return low + np.floor(uniform * (high - low + 1)).astype(np.int64)


def sampling(
    request: InferenceRequest,
    *,
    most: int = MAX_N,
    also: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, int]:
    """Read seed, number of pictures and further whole numbers from a request.

    They stand in a JSON object (`{"seed": 7, "n": 16}`) or in a form's fields. `seed` (default 0) and `n`
    (default 16, or `most` if that is less) are always in the result. `also` names further numbers with
    their bounds, which are in the result if they were given.

    Raises:
        BadRequest: not a JSON object, an unknown name, not a whole number, out of bounds, or given twice.
    """
    bounds = {"seed": (0, MAX_SEED), "n": (1, most), **(also or {})}
    request.refuse_unknown_fields(bounds)
    fields = {name for name in request.fields if name in bounds}
    given = _json_object(request, needed=not fields)
    wanted = {"seed": 0, "n": min(DEFAULT_N, most)}
    for name, value in given.items():
        if name not in bounds:
            raise BadRequest(f"unknown name {str(name)[:40]!r}: {did_you_mean(str(name)[:40], bounds)}")
        if name in fields:
            raise BadRequest(f"{name} is both in the JSON and a field of the form: give it once")
        low, high = bounds[name]
        if type(value) is not int or not low <= value <= high:
            raise BadRequest(f"{name}={_short(value)}: a whole number from {low} to {high} is expected")
        wanted[name] = value
    return wanted | {
        name: request.param(name, 0, low=bounds[name][0], high=bounds[name][1]) for name in sorted(fields)
    }


def has_body(request: InferenceRequest) -> bool:
    """Whether a request has a body beyond a form's fields."""
    return any(
        value is not None and value != b"" and value != ""
        for value in (request.fields.get("body"), request.fields.get("data"))
    )


def has_json_object(request: InferenceRequest) -> bool:
    """Whether the body is a JSON object, decoded or not.

    A file in base64 (`{"b64": "..."}`) does not count.
    """
    if not has_body(request):
        return False
    body = request.body
    if isinstance(body, bytes) and body[:64].lstrip()[:1] == b"{":
        return b'"b64"' not in body[:64]
    if isinstance(body, str) and body[:64].lstrip()[:1] == "{":
        return '"b64"' not in body[:64]
    return isinstance(body, Mapping) and "b64" not in body


def _json_object(request: InferenceRequest, *, needed: bool) -> Mapping[str, Any]:
    example = '{"seed": 7, "n": 16}'
    if not has_body(request):
        if needed:
            raise BadRequest(f"the request is empty: send JSON such as {example}, or {{}}")
        return {}
    given = request.json()
    if not isinstance(given, Mapping):
        raise BadRequest(f"JSON of type {type(given).__name__}: an object is expected, such as {example}")
    return given


def _short(value: Any) -> str:
    """A client's value, shortened for a message.

    Python does not write out a whole number of thousands of digits.
    """
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of more than 38 digits"
    return repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of a sheet."""
    columns = math.isqrt(count - 1) + 1
    return -(-count // columns), columns


def _check_shape(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"pictures of shape {images.shape}: [n, 1 or 3, height, width] is expected")
