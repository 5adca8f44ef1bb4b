"""Assigns APIs to addresses; on a shared address the path decides.

TorchServe lets several APIs share an address, and so does this server.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchport.server.api.base import Api
from torchport.server.http.message import Handler, HttpRequest
from torchport.server.settings.address import Address

_OWNERS = {b"models": 1, b"token": 1, b"reload": 1, b"metrics": 2}
"""First segments of paths of the management and the metrics API, with the API's index in `apis`."""


def by_address(addresses: Sequence[Address], apis: Sequence[Api]) -> list[tuple[Address, Handler]]:
    """Each address once, with what answers its requests.

    `apis` are inference, management and metrics, in this order. Port 0 stands for a different free port
    each time.
    """
    shared: dict[Address, list[int]] = {}
    for index, address in enumerate(addresses):
        if address.port:
            shared.setdefault(address, []).append(index)
    found: list[tuple[Address, Handler]] = []
    for index, address in enumerate(addresses):
        members = shared.get(address, [index])
        if members[0] == index:
            joined: Handler = _Joined({i: apis[i] for i in members}) if len(members) > 1 else apis[index]
            found.append((address, joined))
    return found


class _Joined:
    """Several APIs on one address."""

    def __init__(self, apis: dict[int, Api]) -> None:
        self._apis = apis
        self._first = apis[min(apis)]

    def __call__(self, http: HttpRequest) -> None:
        self._api_of(http)(http)

    def room_for(self, request: HttpRequest, length: int) -> memoryview | None:
        return self._api_of(request).room_for(request, length)

    def _api_of(self, http: HttpRequest) -> Api:
        parts = http.path.split(b"/")
        owner = _OWNERS.get(parts[1] if len(parts) > 1 else b"", 0)
        if owner == 1 and parts[-1] == b"invoke":
            owner = 0
        return self._apis.get(owner, self._first)

    def refused(self, status: int) -> None:
        self._first.refused(status)
