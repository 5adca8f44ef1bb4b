"""What the management API says of an archive, and what a server has unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests

from torchport.targets.torchport_serve import ServerProcess


def unpacked(place: Path) -> list[str]:
    """Folders of the models that the server has unpacked, and whatever else is beside them."""
    return sorted(path.name for path in (place / "run" / "unpacked").iterdir())


def register(server: ServerProcess, **asked: Any) -> requests.Response:
    return requests.post(f"{server.urls['management']}/models", params=asked, timeout=60)


def refusal(server: ServerProcess, **asked: Any) -> tuple[int, str]:
    """Status and message of a registration that must fail."""
    response = register(server, **asked)
    body = response.json()
    assert body["code"] == response.status_code
    return response.status_code, body["message"]
