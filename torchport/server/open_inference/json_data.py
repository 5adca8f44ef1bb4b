"""Numbers of a tensor between JSON and lists, a piece at a time.

    for values in pieces_of_json("x", [2, 1], b"[[1.0], [2.0]]"): ...       # [1.0, 2.0]
    json_of_pieces([[1.0], [2.0]])                                          # b"[1.0,2.0]"

Large data pass in the parsing thread. No step holds Python's lock for long: the structure is compared as
bytes, and a piece has some thousands of values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from torchport.server.errors import InvalidRequest
from torchport.server.http.parsing import let_others_run

PIECE = 8192
"""Values that are converted at once: under 2 ms."""

_PIECE_BYTES = 1 << 15

_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b"[],")

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def pieces_of_json(name: str, shape: Sequence[int], data: bytes) -> Iterator[list[Any]]:
    """The values of valid JSON: one array, or arrays nested as the shape says.

    What they are is not checked, except that none is an array.

    Raises:
        InvalidRequest: the data are no array, or not of that shape.
    """
    data = data.strip()
    if not data.startswith(b"["):
        raise InvalidRequest(f"input {name[:40]!r}: its data is to be an array")
    if b'"' in data or b"{" in data:
        raise InvalidRequest(f"input {name[:40]!r}: its data holds text or objects, numbers are expected")
    structure = data.translate(None, _NOT_STRUCTURE)
    count = math.prod(shape)
    if len(structure) == count + 1 and structure.count(b",") == count - 1:
        text = data[1:-1]
    elif _is_nested(structure, shape):
        text = data.translate(None, b"[]")
    else:
        raise _misshapen(name, shape, count)
    start = found = 0
    while start < len(text):
        end = text.find(b",", start + _PIECE_BYTES)
        end = len(text) if end < 0 else end
        values = _values(name, text[start:end])
        found += len(values)
        yield values
        start = end + 1
    if found != count:
        raise _misshapen(name, shape, count)


def _values(name: str, text: bytes) -> list[Any]:
    try:
        values: list[Any] = _decode(b"[%b]" % text)
    except msgspec.ValidationError as err:
        raise InvalidRequest(f"input {name[:40]!r}: a number in its data is out of every range") from err
    except msgspec.DecodeError as err:
        raise InvalidRequest(f"input {name[:40]!r}: an array in its data is empty") from err
    return values


def _is_nested(structure: bytes, shape: Sequence[int]) -> bool:
    """Whether brackets and commas are those of arrays nested as the shape says."""
    length = 0
    for size in reversed(shape):
        length = 2 + size * length + size - 1
    if not shape or length != len(structure):
        return False
    expected = b""
    for size in reversed(shape):
        expected = b"[%b]" % ((expected + b",") * size)[:-1]
    return structure == expected


def _misshapen(name: str, shape: Sequence[int], count: int) -> InvalidRequest:
    return InvalidRequest(
        f"input {name[:40]!r}: its shape {list(shape)} asks for {count} values, in one array or in arrays "
        "nested as it says; its data is not so"
    )


def json_of_pieces(pieces: Iterable[list[Any]]) -> bytes:
    """One JSON array of all values."""
    encoded = []
    for piece in pieces:
        encoded.append(_encode(piece)[1:-1])
        let_others_run()
    return b"[%b]" % b",".join(encoded)
