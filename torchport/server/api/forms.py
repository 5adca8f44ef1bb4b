"""Splits a request's body into named fields for handlers, as TorchServe does.

fields_of(b"...", "multipart/form-data; boundary=x")       # [Field("data", "image/png", ...), ...]

A large form is read in the parsing thread (`http/parsing.py`), if `is_long_to_read` says so.
"""

from __future__ import annotations

from typing import cast
from urllib.parse import unquote_to_bytes

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from torchport.server.errors import InvalidRequest
from torchport.server.http.message import Body
from torchport.server.http.parsing import INLINE_BYTES, let_others_run
from torchport.server.wire import Field

MAX_FIELDS = 1000

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")

_DIGIT_VALUES = bytes(
    int(chr(byte), 16) if chr(byte) in "0123456789abcdefABCDEF" else 16 for byte in range(256)
)
"""Value of each hexadecimal digit; 16 for every other byte."""

_SPACES = bytes.maketrans(b"+", b" ")

_SHORT = 1024
"""Bytes up to which the standard library reads escapes faster."""

_PIECE = 1 << 17
"""Bytes whose escapes are read at once: 2 ms."""


def is_form(content_type: str) -> bool:
    """Whether bodies of this type are taken apart."""
    return content_type.strip().lower().startswith(_FORMS)


def is_long_to_read(body: Body, content_type: str) -> bool:
    """Whether `fields_of` would hold the event loop up: a large form. Other bodies are not looked into."""
    return len(body) > INLINE_BYTES and is_form(content_type)


def fields_of(body: Body, content_type: str) -> list[Field]:
    """The parts of a form; one field `body` for any other body, which is not copied.

    Raises:
        InvalidRequest: the form cannot be read.
    """
    if content_type == "application/json":
        return [Field("body", content_type, cast(bytearray, body))]
    kind = content_type.partition(";")[0].strip()
    lower = kind.lower()
    if lower.startswith("multipart/form-data"):
        return _multipart(bytes(body), content_type)
    if lower == "application/x-www-form-urlencoded":
        return _urlencoded(bytes(body))
    return [Field("body", kind, cast(bytearray, body))]


def _urlencoded(body: bytes) -> list[Field]:
    # One more mark than that many parts have, if a mark follows the last one.
    if body.count(b"&") > MAX_FIELDS:
        raise InvalidRequest(f"a form of more than {MAX_FIELDS} parts")
    parts = [part for part in body.split(b"&") if part]
    if len(parts) > MAX_FIELDS:
        raise InvalidRequest(f"a form of more than {MAX_FIELDS} parts")
    pairs = [part.translate(_SPACES).partition(b"=") for part in parts]
    # Values are bytes to the handler, of whatever encoding the client chose.
    return [
        Field(_unquoted(name).decode("utf-8", "replace"), "", bytearray(_unquoted(value)))
        for name, _, value in pairs
    ]


def _unquoted(text: bytes) -> bytes:
    """The text with `%41` read as `A`; a sign that no two digits follow stays."""
    if len(text) <= _SHORT or b"%" not in text:
        return unquote_to_bytes(text)
    pieces, start = [], 0
    while start < len(text):
        end = start + _PIECE
        # No escape is cut in two.
        sign = text.rfind(b"%", end - 2, end)
        end = sign if sign > start else end
        pieces.append(_unquoted_at_once(text[start:end]))
        let_others_run()
        start = end
    return b"".join(pieces)


def _unquoted_at_once(text: bytes) -> bytes:
    """The same, of all escapes at once.

    The standard library reads them one after another: seconds for some millions of them.
    """
    given = np.frombuffer(text, np.uint8)
    digits = np.frombuffer(text.translate(_DIGIT_VALUES), np.uint8)
    high, low = digits[1:-1], digits[2:]
    is_escape = (given[:-2] == ord("%")) & (high < 16) & (low < 16)
    found, kept = given.copy(), np.ones(len(given), np.bool_)
    found[:-2][is_escape] = ((high << 4) | low)[is_escape]
    kept[1:-1] &= ~is_escape
    kept[2:] &= ~is_escape
    return found[kept].tobytes()


def _multipart(body: bytes, content_type: str) -> list[Field]:
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidRequest("multipart/form-data without a boundary")
    parts = _Parts()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
                "on_header_field": parts.header_field,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_end": parts.finish,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as err:
        raise InvalidRequest(f"the form cannot be read: {err}") from err
    if not parts.finished:
        raise InvalidRequest("the form ends before its last boundary")
    return parts.fields


class _Parts:
    """Collects the parts that the parser finds."""

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.finished = False
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value, self._data = b"", b"", bytearray()

    def begin(self) -> None:
        if len(self.fields) >= MAX_FIELDS:
            raise InvalidRequest(f"a form of more than {MAX_FIELDS} parts")
        self._headers, self._data = {}, bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name")
        if name is None:
            raise InvalidRequest("a part of the form has no name")
        # Without a file's name a part is plain text to TorchServe, whatever its content type says.
        kind = b""
        if b"filename" in options:
            kind = self._headers.get(b"content-type", b"application/octet-stream")
        self.fields.append(Field(name.decode("utf-8", "replace"), _mime_type(kind), self._data))

    def finish(self) -> None:
        self.finished = True


def _mime_type(value: bytes) -> str:
    return value.decode("latin-1").partition(";")[0].strip()
