"""Streams the answers to one batch on a server that gives whole batches, as TorchServe does.

    bodies = stream_batch(handler, data, context)        # what `handle` returns: the last pieces

The rows of the batch are stepped together. All but the last pieces are sent by TorchServe's own
`send_intermediate_predict_response`. Without it, each answer is sent as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from torchport_runtime.requests.headers import RequestHeaders
from torchport_runtime.streaming import LiveRows, Piece, Streaming

_NEXT = "ts_stream_next"
"""Header by which TorchServe's front knows whether more pieces follow."""


def stream_batch(handler: Streaming, data: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
    """Send the pieces of each row's answer; return the last ones."""
    send = _sender(context)
    last = [b""] * len(data)
    rows = LiveRows(handler)
    for index, fields in enumerate(data):
        rows.join(index, fields, RequestHeaders(context, index))
    while rows:
        pieces = rows.step()
        now: dict[int, bytes] = {}
        for piece in pieces:
            _describe(piece, context)
            is_end = not rows and _streams(piece.key, context)
            if send is None or is_end or piece.status != 200:
                last[piece.key] += piece.body
            else:
                now[piece.key] = piece.body
        if now and send is not None:
            send(now, {index: context.request_ids[index] for index in now}, "", 200, context)
    if send is not None:
        for index in range(len(data)):
            # TorchServe's gRPC ends a call by this header only, also one that has no pieces. Its REST takes
            # the header for a later piece's. Every request by HTTP/1.1 names a host.
            if not _streams(index, context) and "host" not in RequestHeaders(context, index):
                context.set_response_header(index, _NEXT, "false")
    return last


def _streams(index: int, context: Any) -> bool:
    """Whether a piece of this row has been sent."""
    return context.get_response_headers(index).get(_NEXT) is not None


def _describe(piece: Piece, context: Any) -> None:
    if piece.status == 200:
        context.set_response_content_type(piece.key, piece.content_type)
        return
    if not _streams(piece.key, context):
        context.set_response_content_type(piece.key, piece.content_type)
        phrase = HTTPStatus(piece.status).phrase if piece.status in HTTPStatus._value2member_map_ else ""
        context.set_response_status(code=piece.status, phrase=phrase, idx=piece.key)


def _sender(context: Any) -> Callable[..., Any] | None:
    if getattr(context, "cl_socket", None) is None or not context.request_ids:
        return None
    try:
        from ts.handler_utils.utils import send_intermediate_predict_response
    except ImportError:
        try:
            from ts.protocol.otf_message_handler import (  # TorchServe 0.11 and older have it there.
                send_intermediate_predict_response,
            )
        except ImportError:
            return None
    sender: Callable[..., Any] = send_intermediate_predict_response
    return sender
