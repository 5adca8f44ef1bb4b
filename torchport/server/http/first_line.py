"""First lines of requests that the parser does not know: another method, another version of HTTP.

target_of_unknown_method(b"EXPLODE /ping HTTP/1.1")     # b"/ping"
target_of_unknown_method(b"\\0\\0")                       # None: it is no request
"""

from __future__ import annotations

import re

METHODS = {name.encode(): name for name in ("POST", "GET", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH")}
"""Methods by their bytes, so that those of most requests need not be decoded."""

UNKNOWN_VERSION = "Invalid HTTP version"
"""What the parser says of versions that it does not know."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FIRST_LINE = re.compile(
    rb"\A[\r\n]*(?P<begun>%b)(?: (?P<path>[^ \r\n]*)[^\r\n]*)?\Z"
    rb"|(?:\A|\n)(?P<method>%b) (?P<target>[^ \r\n]+) HTTP/[0-9]" % (_TOKEN, _TOKEN)
)
"""The beginning of a request's first line, or such a line anywhere."""


def target_of_unknown_method(data: bytes) -> bytes | None:
    """The target of a request, or as much as is there, whose method the parser refused.

    None if the bytes have no such request. Others may come before it.
    """
    for found in _FIRST_LINE.finditer(data):
        if (found["method"] or found["begun"]) not in METHODS:
            return found["target"] or found["path"] or b""
    return None
