"""Reads the Open Inference Protocol's REST requests, and writes their answers.

    asked = read_request(body, header_length)           # None: JSON and nothing else
    reply = asked.reply("linear", "1.0", tensors)

With the binary tensor data extension the body is JSON, as long as the header
`Inference-Header-Content-Length` says, and then the tensors' bytes, one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from torchport.server.api.base import Reply
from torchport.server.errors import InvalidRequest
from torchport.server.http.message import Body, header_lines
from torchport.server.http.parsing import INLINE_BYTES
from torchport.server.open_inference.json_data import json_of_pieces
from torchport.server.open_inference.metadata import MAIN_GRAPH
from torchport.server.open_inference.tensors import (
    MAX_DIMENSIONS,
    MAX_TENSORS,
    datatype_of,
    require_distinct,
    require_finite,
    tensor_of_bytes,
    tensor_of_json,
    values_of,
)
from torchport.server.wire import InferRow, Tensor

LENGTH_HEADER = b"inference-header-content-length"

_UNSUPPORTED = ("classification", "shared_memory_region")
"""Parameters of extensions that are not supported. They are refused, because an answer without them would
be wrong."""

_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Size = Annotated[int, msgspec.Meta(ge=1, lt=1 << 40)]
_Shape = Annotated[list[_Size], msgspec.Meta(max_length=MAX_DIMENSIONS)]
_Raw = msgspec.Raw
_NONE = msgspec.Raw(b"null")

MAX_PARAMETERS = 1 << 14
"""Maximum bytes of the JSON of one object of parameters."""

MAX_SHAPE = 1 << 12
"""Maximum bytes of the JSON of one shape."""

MAX_OBJECTS = 10 * MAX_TENSORS
"""Maximum number of objects in the JSON of a request. A brace in a text counts as one."""


class _Input(msgspec.Struct):
    name: _Name
    shape: _Raw
    datatype: str
    parameters: _Raw = _NONE
    data: _Raw = _NONE


class _Output(msgspec.Struct):
    name: _Name
    parameters: _Raw = _NONE


class _Request(msgspec.Struct):
    inputs: Annotated[list[_Input], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    id: str | None = None
    parameters: _Raw = _NONE
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=MAX_TENSORS)] | None = None


# What may be long is left as bytes, to be read a piece at a time.
_decode = msgspec.json.Decoder(_Request).decode
_decode_shape = msgspec.json.Decoder(_Shape).decode
_decode_parameters = msgspec.json.Decoder(dict[str, Any] | None).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """A parsed inference request, and the form of its answer.

    `binary`: for each output that the client is specific about, whether it is wanted as bytes.
    `binary_default`: the same for every other output.
    """

    id: str | None
    row: InferRow
    binary: dict[str, bool]
    binary_default: bool

    def reply(self, model: str, version: str, tensors: Sequence[Tensor]) -> Reply:
        """The answer with these tensors as outputs.

        Raises:
            NotFinite: an output that is wanted as JSON holds NaN or Inf.
        """
        answer: dict[str, Any] = {"model_name": model, "model_version": version}
        if self.id is not None:
            answer["id"] = self.id
        outputs, tail = [], []
        for tensor in tensors:
            output: dict[str, Any] = {
                "name": tensor.name,
                "shape": tensor.shape,
                "datatype": datatype_of(tensor.dtype),
            }
            if self.binary.get(tensor.name, self.binary_default):
                output["parameters"] = {"binary_data_size": len(tensor.data)}
                tail.append(tensor.data)
            else:
                require_finite(tensor)
                output["data"] = msgspec.Raw(json_of_pieces(values_of(tensor)))
            outputs.append(output)
        answer["outputs"] = outputs
        head = _encode(answer)
        if not tail:
            return Reply(200, head)
        headers = [
            (b"content-type", b"application/octet-stream"),
            (LENGTH_HEADER, str(len(head)).encode()),
        ]
        return Reply(200, b"".join([head, *tail]), header_lines(headers))


def is_long_to_read(body: Body, header_length: bytes | None) -> bool:
    """Whether `read_request` would hold the event loop up. Bytes behind the JSON are not looked at.

    But those of BOOL: each is held against 0 and 1.
    """
    if len(body) <= INLINE_BYTES:
        return False
    if header_length is None or not header_length.isdigit() or len(header_length) > 6:
        return True
    length = int(header_length)
    return length > INLINE_BYTES or b"BOOL" in bytes(body[:length])


def read_request(body: Body, header_length: bytes | None) -> InferenceRequest:
    """Parse a request's body.

    `header_length` is the header's value with the binary extension, else None.

    Raises:
        InvalidRequest: the body is not a valid request.
    """
    head, tail = _split(body, header_length)
    if head.count(b"{") > MAX_OBJECTS:
        raise InvalidRequest(f"the request's JSON has more than {MAX_OBJECTS} objects")
    try:
        return _read(_decode(head), tail)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise InvalidRequest(f"the request is no inference request: {err}") from err


def _read(asked: _Request, tail: memoryview) -> InferenceRequest:
    outputs = asked.outputs or []
    require_distinct("input", [given.name for given in asked.inputs])
    require_distinct("output", [wanted.name for wanted in outputs])
    tensors, place = [], 0
    for given in asked.inputs:
        if len(given.shape) > MAX_SHAPE:
            raise InvalidRequest(
                f"input {given.name[:40]!r}: a shape of more than {MAX_DIMENSIONS} dimensions"
            )
        shape = _decode_shape(given.shape)
        size = _binary_size(given, len(tail) - place)
        if size is None:
            tensors.append(tensor_of_json(given.name, given.datatype, shape, bytes(given.data)))
            continue
        data = tail[place : place + size]
        tensors.append(tensor_of_bytes(given.name, given.datatype, shape, data))
        place += size
    if place != len(tail):
        raise InvalidRequest(
            f"{len(tail)} bytes come after the request's JSON, its inputs' binary_data_size add up to {place}"
        )
    parameters = _parameters(asked.parameters)
    graph = parameters.get("graph", MAIN_GRAPH)
    if not isinstance(graph, str):
        raise InvalidRequest("parameters.graph: a graph's name is expected")
    return InferenceRequest(
        id=asked.id,
        row=InferRow(graph, tensors, [wanted.name for wanted in outputs]),
        binary=_binary_outputs(outputs),
        binary_default=_flag(parameters, "binary_data_output") or False,
    )


def _parameters(text: msgspec.Raw) -> dict[str, Any]:
    if len(text) > MAX_PARAMETERS:
        raise InvalidRequest(f"parameters of {len(text)} bytes: at most {MAX_PARAMETERS} are expected")
    return _decode_parameters(text) or {}


def _split(body: Body, header_length: bytes | None) -> tuple[bytes, memoryview]:
    """The JSON, and what is behind it."""
    if header_length is None:
        return bytes(body), memoryview(b"")
    length = int(header_length) if header_length.isdigit() and len(header_length) < 19 else -1
    if not 0 < length <= len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length: {header_length[:40].decode('latin-1')!r}: the length of the "
            f"body's JSON is expected; the body has {len(body)} bytes"
        )
    return bytes(body[:length]), memoryview(body)[length:]


def _binary_size(given: _Input, available: int) -> int | None:
    """Number of the input's bytes after the JSON; None without any."""
    size = _parameters(given.parameters).get("binary_data_size")
    if size is None:
        if given.data == _NONE:
            raise InvalidRequest(
                f"input {given.name[:40]!r} has neither data nor parameters.binary_data_size"
            )
        return None
    if given.data != _NONE:
        raise InvalidRequest(f"input {given.name[:40]!r} has both data and parameters.binary_data_size")
    if type(size) is not int or not 0 <= size <= available:
        raise InvalidRequest(
            f"input {given.name[:40]!r}: binary_data_size: a whole number up to {available} is expected: "
            "so many bytes come after the request's JSON, whose length Inference-Header-Content-Length says"
        )
    return size


def _binary_outputs(outputs: Sequence[_Output]) -> dict[str, bool]:
    found = {}
    for wanted in outputs:
        parameters = _parameters(wanted.parameters)
        for name in _UNSUPPORTED:
            if name in parameters:
                raise InvalidRequest(f"output {wanted.name[:40]!r}: {name} is not supported")
        flag = _flag(parameters, "binary_data")
        if flag is not None:
            found[wanted.name] = flag
    return found


def _flag(parameters: dict[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"parameters.{name}: true or false is expected")
    return value
