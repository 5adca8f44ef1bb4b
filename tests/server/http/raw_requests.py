"""Requests, byte by byte, of the model `linear` and of `odd`, which does what its request says."""

from __future__ import annotations

import json


def post(body: bytes, *headers: str, path: str = "/predictions/linear") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def odd(**asked: object) -> bytes:
    return post(json.dumps(asked).encode(), path="/predictions/odd")


VALID = post(b"[4.0]")
PING = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST_PING = b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


POST = b"POST /predictions/linear HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
