"""The head of a call: method, metadata, deadline, of the headers that begin its stream.

head = head_of([(b":method", b"POST"), (b":path", b"/a.Service/Method"), ...])
head.path, head.timeout, head.metadata
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_FORBIDDEN_IN_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

_OF_CONNECTIONS = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
"""Headers of HTTP/1.1 that HTTP/2 forbids."""

_OF_THE_PROTOCOL = {
    b"content-type",
    b"te",
    b"grpc-timeout",
    b"grpc-encoding",
    b"grpc-accept-encoding",
    b"content-length",
}
"""Headers that are gRPC's own, and no metadata."""

_PSEUDO = {b":method", b":scheme", b":path", b":authority"}


class MalformedHead(Exception):
    """Headers that no request may have; the stream is reset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The head of a call.

    `timeout` is in seconds, None without a deadline. `encoding` is how messages are compressed. `refusal` is
    the HTTP status of what is no gRPC call; 0 for a call.
    """

    path: str
    metadata: list[tuple[bytes, bytes]]
    timeout: float | None = None
    encoding: bytes = b"identity"
    refusal: int = 0


def head_of(headers: list[tuple[bytes, bytes]]) -> Head:
    """The head in these headers.

    Raises:
        MalformedHead: they are not those of a request.
    """
    pseudo: dict[bytes, bytes] = {}
    own: dict[bytes, bytes] = {}
    metadata: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name.startswith(b":"):
            if name not in _PSEUDO or name in pseudo or own or metadata:
                raise MalformedHead(f"{name!r} in a wrong place")
            pseudo[name] = value
            continue
        if not _NAME.fullmatch(name) or name in _OF_CONNECTIONS:
            raise MalformedHead(f"a header {name!r}")
        if _FORBIDDEN_IN_VALUES.search(value):
            raise MalformedHead(f"a value that {name!r} cannot have")
        if name in _OF_THE_PROTOCOL:
            own[name] = value
        else:
            metadata.append((name, _binary(value) if name.endswith(b"-bin") else value))
    if not all(pseudo.get(name) for name in (b":method", b":scheme", b":path")):
        raise MalformedHead("a request without method, scheme or path")
    if _FORBIDDEN_IN_VALUES.search(pseudo[b":path"]):
        raise MalformedHead("a path that none can be")
    if own.get(b"te", b"trailers") != b"trailers":
        raise MalformedHead("te is no trailers")
    return Head(
        path=pseudo[b":path"].decode("latin-1"),
        metadata=metadata,
        timeout=_timeout(own.get(b"grpc-timeout")),
        encoding=own.get(b"grpc-encoding", b"identity"),
        refusal=_refusal(pseudo[b":method"], own.get(b"content-type", b"")),
    )


def _refusal(method: bytes, content_type: bytes) -> int:
    if method != b"POST":
        return 405
    return 0 if content_type.startswith(b"application/grpc") else 415


def _timeout(value: bytes | None) -> float | None:
    if value is None:
        return None
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise MalformedHead("a grpc-timeout that is none")
    return int(match[1]) * _SECONDS[match[2]]


def _binary(value: bytes) -> bytes:
    """A value that was sent as base64, mostly without its padding."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as err:
        raise MalformedHead("a binary value that is no base64") from err
