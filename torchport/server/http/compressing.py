"""Compresses answers for clients that ask for it, where it is worth it.

    encoding = accepted_encoding(b"gzip, deflate;q=0.5")        # "gzip"
    body = await compressed(body, encoding)                     # in the parsing thread

Worth it are bodies of `MIN_SIZE` bytes and more of types that text is written in. Tensors as bytes are
compressed only for clients that name one encoding and no other: who lists all that it knows has not asked.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

from torchport.server.http.message import BODILESS
from torchport.server.http.parsing import INLINE_BYTES, in_parsing_thread

MIN_SIZE = 2048
"""Minimum bytes of a body that is compressed: smaller ones take one or two packets anyhow."""

LEVEL = 1
"""zlib's level: the fastest, some 100 MB/s."""

VARY_LINE = b"vary: Accept-Encoding\r\n"
"""Tells caches that the answer depends on what the client accepts."""

_PIECE = 1 << 18
"""Bytes that are compressed at once: about 2 ms."""

_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_TYPE = re.compile(rb"(?:\A|\n)content-type: *([^\r\n; ]*)", re.IGNORECASE)
_TEXT = re.compile(rb"text/.*|application/(json|x-ndjson|xml|javascript|yaml)|.*\+(json|xml)|image/svg\+xml")
_BYTES = b"application/octet-stream"
_MAX_HEADER = 256
"""Maximum bytes of an `Accept-Encoding` that is looked at; a client that sends more gets plain bytes."""


def may_vary(status: int, lines: bytes, body: bytes) -> bool:
    """Whether an answer is sent compressed to clients that ask; `lines` are its headers."""
    if len(body) < MIN_SIZE or status in (*BODILESS, 206) or b"content-encoding:" in lines.lower():
        return False
    kind = _kind(lines)
    return kind == _BYTES or _TEXT.fullmatch(kind) is not None


def encoding_for(accepted: bytes | None, lines: bytes) -> str:
    """The encoding of an answer that may vary, by the request's `Accept-Encoding`; empty for none."""
    if not accepted or len(accepted) > _MAX_HEADER:
        return ""
    if _kind(lines) == _BYTES and accepted.strip().lower() not in (b"gzip", b"deflate"):
        return ""
    return accepted_encoding(accepted)


def _kind(lines: bytes) -> bytes:
    found = _TYPE.search(lines)
    return found[1].lower() if found is not None else b""


@lru_cache(maxsize=64)
def accepted_encoding(header: bytes) -> str:
    """The encoding that an `Accept-Encoding` prefers, of those that answers have; empty for none."""
    weights: dict[str, float] = {}
    for part in header.decode("latin-1").lower().split(","):
        name, _, more = part.partition(";")
        weights.setdefault(name.strip(), _weight(more.strip()))
    others = weights.get("*", 0.0)
    best = max(_BITS, key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else ""


def _weight(text: str) -> float:
    """The weight that `q=0.5` gives; 1 without one, 0 for what cannot be read."""
    if not text:
        return 1.0
    found = re.fullmatch(r"q *= *([01](?:\.[0-9]{0,3})?)", text)
    return float(found[1]) if found else 0.0


async def compressed(body: bytes, encoding: str) -> bytes:
    """The body in this encoding. A large one is compressed in the parsing thread, a piece at a time."""
    compressor, pieces = zlib.compressobj(LEVEL, zlib.DEFLATED, _BITS[encoding]), []
    whole = memoryview(body)
    for start in range(0, len(body), _PIECE):
        pieces.append(await in_parsing_thread(compressor.compress, whole[start : start + _PIECE]))
    pieces.append(compressor.flush())
    return b"".join(pieces)


def is_long_to_compress(body: bytes) -> bool:
    """Whether `compressed_at_once` would hold the event loop up."""
    return len(body) > INLINE_BYTES


def compressed_at_once(body: bytes, encoding: str) -> bytes:
    """The body in this encoding."""
    return zlib.compress(body, LEVEL, _BITS[encoding])
