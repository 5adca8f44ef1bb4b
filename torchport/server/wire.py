"""What the front and its workers say to each other over a socket pair.

A frame is eight bytes of length (little-endian) and a MessagePack message. The front sends `Load` and
then `Predict` or `Infer`, one at a time; the worker answers each with `Answered`, any number of
`Partial`s before it. `slot` says which of the models in the worker's process is meant.

    sock.sendall(encode_frame(Predict(slot=9000, batch=1, rows=[...])))
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

HEADER = struct.Struct("<Q")
MAX_FRAME = 1 << 34
"""A frame that announces more, 16 GiB, is damage."""


class Field(msgspec.Struct, array_like=True):
    """A named part of a request: the body, or a part of a form."""

    name: str
    content_type: str
    value: bytearray


class Row(msgspec.Struct, array_like=True):
    """One request. `headers` are as the client wrote them, in its order; Latin-1, as HTTP has it."""

    id: str
    headers: list[tuple[bytes, bytes]]
    fields: list[Field]


class Load(msgspec.Struct, array_like=True, tag=1):
    """Load the model in `folder`. `gpu` is a device's number, or None; `shared` says that other models are
    to live in the same process."""

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


class Unload(msgspec.Struct, array_like=True, tag=4):
    """Forget a model."""

    slot: int


class Predict(msgspec.Struct, array_like=True, tag=2):
    """Answer these requests by the model's handler."""

    slot: int
    batch: int
    rows: list[Row]


class Tensor(msgspec.Struct, array_like=True):
    """A tensor in row-major, little-endian bytes; `dtype` is numpy's name, or "string"."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes


class InferRow(msgspec.Struct, array_like=True):
    """One request straight onto a graph's tensors. No names in `outputs` stands for all of them."""

    graph: str
    inputs: list[Tensor]
    outputs: list[str]


class Infer(msgspec.Struct, array_like=True, tag=3):
    """Run these tensors, past the handler's decoding and encoding."""

    slot: int
    batch: int
    rows: list[InferRow]


class Answer(msgspec.Struct, array_like=True):
    """One request's answer. `error` says that `body` is a message for the server's error shape."""

    status: int
    body: bytes
    content_type: str = ""
    headers: list[tuple[str, str]] = []
    phrase: str = ""
    error: str = ""
    tensors: list[Tensor] = []


class MetricValue(msgspec.Struct, array_like=True):
    """A value of one of the handler's own metrics. `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    unit: str
    value: float
    labels: list[tuple[str, str]]


class Loaded(msgspec.Struct, array_like=True, tag=11):
    """The model is loaded and warm; `description` says what runs it, for the log."""

    slot: int
    description: str
    signature: bytes


class LoadFailed(msgspec.Struct, array_like=True, tag=12):
    """The model cannot be loaded."""

    slot: int
    reason: str
    traceback: str


class Partial(msgspec.Struct, array_like=True, tag=13):
    """A piece of a streamed answer to the batch's row `row`; `Answered` carries the last one."""

    slot: int
    batch: int
    row: int
    answer: Answer


class Answered(msgspec.Struct, array_like=True, tag=14):
    """Answers to all rows of a batch, in their order. `memory` is the worker's resident size in bytes."""

    slot: int
    batch: int
    answers: list[Answer]
    samples: list[MetricValue]
    memory: int


class Sampled(msgspec.Struct, array_like=True, tag=15):
    """The handler's metrics between two batches: what it does after it has answered."""

    slot: int
    samples: list[MetricValue]


Order = Load | Unload | Predict | Infer
Report = Loaded | LoadFailed | Partial | Answered | Sampled

_encoder = msgspec.msgpack.Encoder()
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


def encode_frame(message: Any) -> bytearray:
    """The message as a frame."""
    frame = bytearray(HEADER.size)
    _encoder.encode_into(message, frame, HEADER.size)
    HEADER.pack_into(frame, 0, len(frame) - HEADER.size)
    return frame
