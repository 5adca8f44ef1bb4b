"""The names by which clients may address a server: the rule for the header `Host`.

    HostRule.of(settings, "127.0.0.1").status(b"localhost:8080")       # 0: fine
    HostRule.of(settings, "127.0.0.1").status(b"example.org")          # 403

A web page whose name its owner made to lead to 127.0.0.1 (DNS rebinding) could otherwise ask a server that
listens on the loopback address, and read what it answers. Its requests carry the page's name.
"""

from __future__ import annotations

import re
import socket

from torchport.server.settings.address import Address
from torchport.server.settings.settings import ServerSettings

_HOST = re.compile(rb"(?P<name>\[[0-9A-Za-z:.%]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(:[0-9]{0,5})?")
_NUMBER = re.compile(r"\[.*\]|(.*\.)?([0-9]+|0x[0-9a-f]*)")
"""An address: a name whose last part is a number is none of the DNS, and browsers take it for IPv4."""

_KEPT = 64
"""Maximum number of values whose result is kept: a client could send others for ever."""


class HostRule:
    """Checks `Host` headers. `names` are the server's in lower case; None allows any."""

    def __init__(self, names: frozenset[str] | None) -> None:
        self._names = names
        self._fine: set[bytes] = set()

    @classmethod
    def of(cls, settings: ServerSettings, host: str) -> HostRule:
        """The rule of a listening address with this host."""
        allowed = {name.lower() for name in settings.allowed_hosts}
        if "*" in allowed or (not allowed and not Address("http", host, 0).is_loopback):
            return cls(None)
        return cls(frozenset({"localhost", host.lower(), socket.gethostname().lower(), *allowed}))

    def status(self, value: bytes) -> int:
        """The HTTP status to refuse a header's value with; 0 if it is fine."""
        if value in self._fine:
            return 0
        match = _HOST.fullmatch(value)
        if match is None:
            return 400
        if not self._is_ours(match["name"].decode("ascii").lower().removesuffix(".")):
            return 403
        if len(self._fine) < _KEPT:
            self._fine.add(value)
        return 0

    def _is_ours(self, name: str) -> bool:
        # No page has an empty name, and no page can be given a number or a name below localhost.
        if self._names is None or not name or name in self._names or name.endswith(".localhost"):
            return True
        if _NUMBER.fullmatch(name):
            return True
        return any(f".{above}" in self._names for above in _above(name))


def _above(name: str) -> list[str]:
    """The domains that a name is in: `b.c` and `c` for `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]
