"""Messages between the front and its workers, over a socket pair.

A frame is eight bytes of length (little-endian) and a MessagePack message. The front sends `Load` and
then `Predict` or `Infer`, one at a time; the worker answers each with `Answered`, any number of
`Partial`s before it. A model that streams takes `Join` and `Leave` at any time, and answers each `Join` with
`Left`. `slot` is the number of a model in the worker's process.

    sock.sendall(encode_frame(Predict(slot=9000, batch=1, rows=[...])))
"""

from __future__ import annotations

import struct
from typing import Annotated, Any

import msgspec

HEADER = struct.Struct("<Q")
MAX_FRAME = 1 << 34
"""Maximum length of a frame in bytes, 16 GiB. A longer one means that the channel is damaged."""

MIN_STATUS, MAX_STATUS = 200, 599
"""The statuses that an answer may have; a client would not understand another."""

MAX_NAME = 1000
"""Maximum length in characters of a name in a report: a header's, a content type, a part of a metric."""

MAX_HEADER = 8 << 10
"""Maximum length in characters of a header of an answer."""

MAX_HEADERS = 64
"""Maximum number of headers of an answer."""

MAX_MESSAGE = 64 << 10
"""Maximum length in characters of what a worker says of its model: a description, a reason, a traceback."""

MAX_LABELS = 100
"""Maximum number of labels of a metric."""

LARGE = 1 << 16
"""Bytes from which data travel in shared memory. Smaller ones are copied into the message: that is faster."""

# A report whose values are not so is damaged, like one that cannot be read.
Status = Annotated[int, msgspec.Meta(ge=MIN_STATUS, le=MAX_STATUS)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
Message = Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE)]
Header = tuple[Name, Annotated[str, msgspec.Meta(max_length=MAX_HEADER)]]

DROPPED = "dropped"
"""Kind of a metric's value that counts values which the worker has dropped; it has no name."""


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Where data lie in memory that the front and the worker share, instead of in the message."""

    start: int
    length: int


class Field(msgspec.Struct, array_like=True):
    """A named part of a request: body or form part.

    In the front, `value` may be any bytes-like object.
    """

    name: str
    content_type: str
    value: bytearray
    place: Place | None = None


class Row(msgspec.Struct, array_like=True):
    """One request for a handler.

    `headers` keep the client's spelling and order. They are Latin-1, as in HTTP.
    """

    id: str
    headers: list[tuple[bytes, bytes]]
    fields: list[Field]


class DeclaredMetric(msgspec.Struct, array_like=True):
    """A metric that a handler finds by its name, with its dimensions in their order."""

    name: str
    kind: str
    unit: str
    dimensions: list[str]


class Load(msgspec.Struct, array_like=True, tag=1):
    """Load the model in `folder`.

    `gpu` is a device number, or None for the CPU. `shared`: whether other models may live in the same
    process. `max_response_size` is the maximum length of an answer in bytes; 0: without limit. `metrics` are
    those that the handler finds declared.
    """

    model: str
    version: str
    folder: str
    handler: str
    envelope: str
    batch_size: int
    gpu: int | None
    limit_max_image_pixels: bool
    decode_input: bool
    slot: int = 0
    shared: bool = False
    max_response_size: int = 0
    metrics: list[DeclaredMetric] = []


class Unload(msgspec.Struct, array_like=True, tag=4):
    """Drop a model."""

    slot: int


class Predict(msgspec.Struct, array_like=True, tag=2):
    """Answer these requests with the model's handler."""

    slot: int
    batch: int
    rows: list[Row]


class Join(msgspec.Struct, array_like=True, tag=5):
    """Stream the answer to one request, next to the rows that are live already.

    `batch` is the row's number. The worker answers with `Partial`s and one `Left` of that number.
    """

    slot: int
    batch: int
    row: Row


class Leave(msgspec.Struct, array_like=True, tag=6):
    """Compute nothing more for a live row: its client is gone. The worker confirms it with `Left`."""

    slot: int
    batch: int


class Tensor(msgspec.Struct, array_like=True):
    """A tensor in row-major, little-endian bytes; `dtype` is numpy's name, or "string".

    Where the message does not come from, `data` may be any bytes-like object.
    """

    name: str
    dtype: str
    shape: list[int]
    data: bytes
    place: Place | None = None


class InferRow(msgspec.Struct, array_like=True):
    """One request of tensors for a graph; empty `outputs` ask for all."""

    graph: str
    inputs: list[Tensor]
    outputs: list[str]
    id: str = ""
    """The request's, for the log."""


class Infer(msgspec.Struct, array_like=True, tag=3):
    """Run these tensors, without the handler's decoding and encoding."""

    slot: int
    batch: int
    rows: list[InferRow]


class Answer(msgspec.Struct, array_like=True):
    """The answer to one request.

    An `error` that is not empty is the error's `type`; `body` is its message then.
    """

    status: Status
    body: bytes
    content_type: Name = ""
    headers: Annotated[list[Header], msgspec.Meta(max_length=MAX_HEADERS)] = []
    phrase: Name = ""
    error: Name = ""
    tensors: list[Tensor] = []
    place: Place | None = None
    """Where the body is, if not in `body`."""


class MetricValue(msgspec.Struct, array_like=True):
    """One value of a handler's metric; `kind` is counter, gauge, histogram or `DROPPED`."""

    name: Name
    kind: Name
    unit: Name
    value: float
    labels: Annotated[list[tuple[Name, Name]], msgspec.Meta(max_length=MAX_LABELS)]


class Loaded(msgspec.Struct, array_like=True, tag=11):
    """The model is loaded and warm.

    `description` names its backends, for the log. `signature` is JSON; empty if torchport did not make the
    archive. `streams`: whether requests join it one by one.
    """

    slot: int
    description: Message
    signature: bytes
    streams: bool = False


class LoadFailed(msgspec.Struct, array_like=True, tag=12):
    """The model cannot be loaded."""

    slot: int
    reason: Message
    traceback: Message


class Partial(msgspec.Struct, array_like=True, tag=13):
    """One piece of a streamed answer to row `row`.

    `Answered` has the last piece.
    """

    slot: int
    batch: int
    row: int
    answer: Answer


class Answered(msgspec.Struct, array_like=True, tag=14):
    """Answers to all rows of a batch, in order.

    `memory` is the worker's resident memory in bytes. `kept` are the starts of the places in the requests'
    memory that the handler still refers to, of this batch and of earlier ones.
    """

    slot: int
    batch: int
    answers: list[Answer]
    samples: list[MetricValue]
    memory: int
    kept: list[int] = []


class Left(msgspec.Struct, array_like=True, tag=17):
    """A live row has ended; `answer` has its last piece, or its error. It is sent once for each `Join`."""

    slot: int
    batch: int
    answer: Answer
    samples: list[MetricValue]
    memory: int


class Sampled(msgspec.Struct, array_like=True, tag=15):
    """Metrics of a handler between two batches, such as its shadow's."""

    slot: int
    samples: list[MetricValue]


class Logged(msgspec.Struct, array_like=True, tag=16):
    """A record of a worker's log, with the model and the requests that it worked on.

    `level` is one of Python's. `slot` is -1 outside of any model's work.
    """

    slot: int
    model: str
    level: int
    message: str
    traceback: str = ""
    requests: list[str] = []


Order = Load | Unload | Predict | Infer | Join | Leave
Report = Loaded | LoadFailed | Partial | Answered | Left | Sampled | Logged

_encoder = msgspec.msgpack.Encoder()
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


def encode_frame(message: Any) -> bytearray:
    """Encode a message as a frame."""
    frame = bytearray(HEADER.size)
    _encoder.encode_into(message, frame, HEADER.size)
    HEADER.pack_into(frame, 0, len(frame) - HEADER.size)
    return frame
