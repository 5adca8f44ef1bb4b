"""Reads gRPC messages, of which even the most expensive holds nothing up.

    require_few_fields(data, inference.PredictionsRequest.DESCRIPTOR)
    values = values_of_contents(contents, "fp32_contents")

A message of some megabytes may have millions of fields, each an object of Python's. They are counted
before protobuf reads the message, in one call that cannot be interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from torchport.server.errors import InvalidRequest
from torchport.server.grpc.messages import open_inference

MAX_FIELDS = 1 << 14
"""Maximum number of fields in one message, those of inner messages included."""

FEW_FIELDS = 64
"""Maximum number of fields that are looked at on the event loop."""

MAX_PACKED = 1 << 10
"""Maximum bytes of one packed field: shapes are short, and contents are read by `values_of_contents`."""

Data = bytes | memoryview
"""A message as it was sent."""

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_WIDTHS = {_FIXED_64: 8, _FIXED_32: 4}

_PIECE_BYTES = 1 << 15
_TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def require_few_fields(data: Data, descriptor: Any) -> None:
    """Refuse a message of too many fields, or with too long a packed one.

    Raises:
        InvalidRequest: the message is refused, or is none.
    """
    count, pending = 0, [(0, len(data), descriptor)]
    while pending:
        start, end, descriptor = pending.pop()
        known = descriptor.fields_by_number
        for number, wire_type, first, last in _fields(data, start, end):
            count += 1
            if count > MAX_FIELDS:
                raise InvalidRequest(f"a message of more than {MAX_FIELDS} fields")
            field = known.get(number)
            if wire_type != _BYTES or field is None or field.type in _TEXTS:
                continue
            if field.message_type is not None:
                pending.append((first, last, field.message_type))
            elif last - first > MAX_PACKED:
                raise InvalidRequest(f"{field.name}: {last - first} bytes, at most {MAX_PACKED} are expected")


def _fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, first and last byte of each field of a message."""
    while start < end:
        tag, start = _varint(data, start, end)
        wire_type = tag & 7
        first = start
        if wire_type == _VARINT:
            _, start = _varint(data, start, end)
        elif wire_type == _BYTES:
            size, first = _varint(data, start, end)
            start = first + size
        elif wire_type in _WIDTHS:
            start += _WIDTHS[wire_type]
        else:
            raise InvalidRequest("a message with a group, which no version of these services has")
        if start > end:
            raise InvalidRequest("a message that is cut off")
        yield tag >> 3, wire_type, first, start


def without_field(data: memoryview, number: int) -> tuple[bytes, list[memoryview]] | None:
    """A message without its fields of this number, and the bytes of those; None if it has many fields.

    The fields' bytes are not copied.

    Raises:
        InvalidRequest: it is no message.
    """
    rest, pieces, last, kept = [], list[memoryview](), 0, 0
    for count, (given, wire_type, first, end) in enumerate(_fields(data, 0, len(data))):
        if count == FEW_FIELDS:
            return None
        if given == number and wire_type == _BYTES:
            rest.append(data[kept:last])
            pieces.append(data[first:end])
            kept = end
        last = end
    return b"".join([*rest, data[kept:]]), pieces


def beginning_of(data: memoryview, number: int) -> tuple[str, str, int]:
    """Name and version of the model in the first bytes of a message, and where this field begins.

    The name is empty if the bytes do not say it.
    """
    texts, at = {1: "", 2: ""}, 0
    try:
        for _ in range(FEW_FIELDS):
            tag, first = _varint(data, at, len(data))
            size, first = _varint(data, first, len(data))
            if tag & 7 != _BYTES or tag >> 3 == number:
                return texts[1], texts[2], first
            at = first + size
            if tag >> 3 in texts and at <= len(data):
                texts[tag >> 3] = str(data[first:at], "utf-8")
    except (InvalidRequest, UnicodeDecodeError):
        pass  # Who reads the whole message says what is wrong with it.
    return "", "", 0


def entry_of_map(entry: memoryview) -> tuple[str, memoryview]:
    """Key and value of a `map<string, bytes>`.

    Raises:
        InvalidRequest: it is no such entry.
    """
    found = {1: memoryview(b""), 2: memoryview(b"")}
    for count, (number, wire_type, first, end) in enumerate(_fields(entry, 0, len(entry))):
        if count == FEW_FIELDS:
            raise InvalidRequest(f"an entry of more than {FEW_FIELDS} fields")
        if wire_type == _BYTES:
            found[number] = entry[first:end]
    try:
        return str(found[1], "utf-8"), found[2]
    except UnicodeDecodeError as err:
        raise InvalidRequest("a name that is not UTF-8") from err


def field_of_bytes(number: int, data: Data) -> list[Data]:
    """A field of bytes in two pieces, of which the second is the data itself."""
    return [bytes([number << 3 | _BYTES]) + _length(len(data)), data]


def _varint(data: Data, start: int, end: int) -> tuple[int, int]:
    """A number in 7-bit groups, and where the next byte is."""
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
        shift += 7
    raise InvalidRequest("a message that is cut off")


def pieces_of_contents(contents: bytes, name: str) -> Iterator[list[Any]]:
    """The values of one field of an `InferTensorContents`, some thousands at a time.

    Raises:
        InvalidRequest: the contents are no such message.
    """
    message = open_inference.InferTensorContents
    number = message.DESCRIPTOR.fields_by_name[name].number
    count = 0
    for given, wire_type, first, last in _fields(contents, 0, len(contents)):
        count += 1
        if count > MAX_FIELDS:
            raise InvalidRequest(f"contents of more than {MAX_FIELDS} fields: numbers are expected packed")
        if given != number:
            continue
        if wire_type != _BYTES:
            piece = _field(number, wire_type, contents[first:last])
            yield list(getattr(message.FromString(piece), name))
            continue
        while first < last:
            end = _end_of_piece(contents, name, first, last)
            yield list(getattr(message.FromString(_field(number, _BYTES, contents[first:end])), name))
            first = end


def _end_of_piece(contents: bytes, name: str, first: int, last: int) -> int:
    """Where a piece of packed numbers ends that cuts none of them in two."""
    end = min(last, first + _PIECE_BYTES)
    if name not in ("fp32_contents", "fp64_contents"):
        # The last byte of a number is below 128.
        while end < last and contents[end - 1] >= 128:
            end += 1
    return end


def _field(number: int, wire_type: int, value: bytes) -> bytes:
    """A message of one field."""
    tag = bytes([number << 3 | wire_type])
    if wire_type != _BYTES:
        return tag + value
    return tag + _length(len(value)) + value


def _length(size: int) -> bytes:
    length = bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([*length, size])
