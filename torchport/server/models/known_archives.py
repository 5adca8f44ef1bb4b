"""The archives that a server has served from its store, as their files were.

    known = KnownArchives()
    known.note("linear-1.0.mar", known.identity(store, "linear-1.0.mar"))
    known.holds(store, "linear-1.0.mar")         # until the file changes

What was removed by a request stays known: neither a restart nor a reload brings it back, unless its file has
changed. Snapshots keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Identity = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""


class KnownArchives:
    """Identities of archives by file name. What is not in the store, such as a URL, is never known."""

    def __init__(self, known: Mapping[str, Identity] | None = None) -> None:
        self._known = dict(known or {})

    @classmethod
    def of_json(cls, value: Any) -> KnownArchives | None:
        """What `to_json` wrote; None for anything else, such as a snapshot of TorchServe's."""
        if not isinstance(value, dict):
            return None
        found = {}
        for name, entry in value.items():
            if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(n, int) for n in entry)):
                return None
            found[str(name)] = (entry[0], entry[1])
        return cls(found)

    def to_json(self) -> dict[str, list[int]]:
        return {name: list(identity) for name, identity in sorted(self._known.items())}

    @staticmethod
    def identity(store: Path, name: str) -> Identity | None:
        """The identity of a file of the store now; None without such a file."""
        try:
            found = (store / name).stat()
        except (OSError, ValueError):
            return None
        return found.st_size, found.st_mtime_ns

    def note(self, name: str, identity: Identity | None) -> None:
        """Remember an archive that is served, as it was just before it was read."""
        if identity is not None:
            self._known[name] = identity

    def holds(self, store: Path, name: str) -> bool:
        """Whether the archive, as it is now, has been served already."""
        identity = self.identity(store, name)
        return identity is not None and self._known.get(name) == identity

    def has_changed(self, store: Path, name: str) -> bool:
        """Whether the archive has been served as it was before, and its file is another now."""
        identity = self.identity(store, name)
        return identity is not None and name in self._known and self._known[name] != identity
