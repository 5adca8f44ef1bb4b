"""An inspected and unpacked archive, from which a model version is made."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchport.archive.contents import Entry


@dataclass(frozen=True, kw_only=True)
class UnpackedModel:
    """An archive that was inspected and unpacked into `folder`.

    `url` is as it was registered. `thread_count` is that of its config; 0 leaves it to the server.
    `entries` are the archive's, `files` the names of what lies in the folder.
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
    entries: tuple[Entry, ...] = ()
    files: tuple[str, ...] = ()
    restoring: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    """Held while missing files are unpacked again."""

    def missing(self) -> list[str]:
        """Names of the files that are not in the folder any more."""
        return [name for name in self.files if not (self.folder / name).is_file()]
