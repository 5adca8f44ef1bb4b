"""Whether a server can listen on its addresses, asked before anything is started that would have to end.

require_free([Address("http", "127.0.0.1", 8080)])
# ServerError: cannot listen on http://127.0.0.1:8080: Address already in use: ...
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable

from torchport.errors import ServerError
from torchport.server.settings.address import Address


def cannot_listen(address: Address, err: OSError) -> ServerError:
    """The error for an address that is taken or does not exist."""
    return ServerError(
        f"cannot listen on {address}: {err.strerror or err}: stop what listens there, or choose "
        "another with --port"
    )


def require_free(addresses: Iterable[Address]) -> None:
    """Refuse addresses on which another process listens.

    Whatever else may be wrong with them is found by those who listen.

    Raises:
        ServerError: an address is taken.
    """
    for address in addresses:
        if address.port:
            _require_free(address)


def _require_free(address: Address) -> None:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, where in found:
            with socket.socket(family, kind, protocol) as probe:
                if os.name == "posix":
                    # Connections of a server that has just ended are no hindrance, as for the real socket.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(where)
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            raise cannot_listen(address, err) from err
