"""An inspected and unpacked archive, from which a model version is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class UnpackedModel:
    """An archive that was inspected and unpacked into `folder`.

    `url` is as it was registered. `thread_count` is that of its config; 0 leaves it to the server.
    """

    name: str
    version: str
    url: str
    folder: Path
    handler: str
    envelope: str
    runtime: str
    config: dict[str, Any]
    thread_count: int
    certified: bool
    handler_given: bool = False
    """Whether the registration named a handler, instead of the archive's own."""
