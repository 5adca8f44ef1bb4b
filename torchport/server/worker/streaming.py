"""Streams pieces of an answer while the handler still computes it.

TorchServe's `send_intermediate_predict_response` writes a message of TorchServe's own format to
`context.cl_socket`. Handlers import that function from TorchServe. So the stand-in for the socket here
reads that format (`ts/protocol/otf_message_handler.py`) and passes the pieces on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from torchport.server.wire import Answer

_INT = struct.Struct("!i")
_END = -1


class StreamSocket:
    """Stands in for the socket `context.cl_socket`.

    `send_piece(request_id, answer)` passes a piece to the front.
    """

    def __init__(self, send_piece: Callable[[str, Answer], None]) -> None:
        self._send_piece = send_piece

    def sendall(self, message: bytes) -> None:
        # As a socket: no number, of which `bytes` would make as many zeros.
        for request_id, answer in parse_response(bytes(memoryview(message))):
            self._send_piece(request_id, answer)

    def send(self, message: bytes) -> int:
        self.sendall(message)
        return len(message)


def parse_response(message: bytes) -> list[tuple[str, Answer]]:
    """Request ids and answers in one message of TorchServe's format.

    Raises:
        ValueError: the message has another format.
    """
    try:
        return _parse(message)
    except (struct.error, UnicodeDecodeError) as err:
        raise ValueError("context.cl_socket takes TorchServe's responses and nothing else") from err


def _parse(message: bytes) -> list[tuple[str, Answer]]:
    offset = 0

    def number() -> int:
        nonlocal offset
        (value,) = _INT.unpack_from(message, offset)
        offset += _INT.size
        return int(value)

    def chunk(length: int | None = None) -> bytes:
        nonlocal offset
        length = number() if length is None else length
        value = message[offset : offset + length]
        if length < 0 or len(value) != length:
            raise ValueError("context.cl_socket: a message that ends early")
        offset += length
        return value

    number()  # The status of the batch as a whole; each row has its own.
    chunk()
    found = []
    while (length := number()) != _END:
        request_id = chunk(length).decode()
        content_type, status, phrase = chunk().decode(), number(), chunk().decode()
        headers = [(chunk().decode(), chunk().decode()) for _ in range(number())]
        kept = [pair for pair in headers if pair[0].lower() not in ("content-type", "ts_stream_next")]
        answer = Answer(status=status, body=chunk(), content_type=content_type, headers=kept, phrase=phrase)
        found.append((request_id, answer))
    return found
