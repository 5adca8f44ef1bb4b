"""The address of an API: `http://127.0.0.1:8080`.

Address.parse("inference_address", "http://127.0.0.1", 8080).endpoint      # "127.0.0.1:8080"
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from torchport.errors import ServerError

_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-z:.%]+\]|[a-z0-9._-]+)(:(?P<port>[0-9]{1,6}))?/?", re.IGNORECASE
)


@dataclass(frozen=True)
class Address:
    """The listening address of an API; port 0 lets the system choose."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, key: str, text: str, port: int) -> Address:
        """Parse an address such as `http://127.0.0.1:8080`; `port` is the default.

        Raises:
            ServerError: `text` is not such an address.
        """
        match = _ADDRESS.fullmatch(text.strip())
        if match is None:
            hint = ": sockets of the file system are not supported" if text.startswith("unix:") else ""
            raise ServerError(f"{key}={text!r}{hint}: http://HOST:PORT or https://HOST:PORT is expected")
        number, host = int(match["port"] or port), match["host"].strip("[]")
        if number > 65535:
            raise ServerError(f"{key}={text!r}: a port is at most 65535")
        if any(len(label) > 63 for label in host.split(".")):
            raise ServerError(f"{key}={text!r}: no host has such a name")
        return cls(match["scheme"].lower(), host, number)

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def endpoint(self) -> str:
        """`HOST:PORT`, an IPv6 host in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.endpoint}"
