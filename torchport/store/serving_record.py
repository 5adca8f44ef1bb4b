"""`serving.json`: what servers answered over HTTP, a record for each server, backend and precision that was
asked of one archive.

    keep_record(folder, {"server": "TorchServe 0.12.0", "archive_sha256": "...", ...})
    read_records(folder)                 # the record of each, the last asked last
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchport.store.files import read_json, write_json
from torchport.store.folders import BuildFolder, Store
from torchport.store.hashing import sha256_file

FORMAT = 2
"""Before it, the file was the last record alone."""

_REQUIRED = {"server": str, "archive_sha256": str, "passed": bool, "metrics": dict}


def read_records(folder: BuildFolder, archive_sha256: str | None = None) -> list[dict[str, Any]]:
    """The records of a build folder, all of one archive, the last asked last; none where there are none, or
    they are damaged, or of another archive than the given one."""
    value = read_json(folder.serving) or {}
    listed = value.get("servers", [value])
    records = [
        record
        for record in (listed if isinstance(listed, list) else [])
        if isinstance(record, dict)
        and all(isinstance(record.get(key), kind) for key, kind in _REQUIRED.items())
    ]
    wanted = archive_sha256 or (records[-1]["archive_sha256"] if records else None)
    return [record for record in records if record["archive_sha256"] == wanted]


def records_of_certificate(
    folder: BuildFolder, certificate_sha256: str, archive_sha256: str | None = None
) -> list[dict[str, Any]]:
    """As `read_records`, of archives that carry this certificate."""
    records = read_records(folder, archive_sha256)
    return [record for record in records if record.get("certificate_sha256") == certificate_sha256]


def keep_record(folder: BuildFolder, record: dict[str, Any]) -> None:
    """Put a record in the place of the same server's, and drop those of another archive."""
    others = [
        other for other in read_records(folder, record["archive_sha256"]) if _asked(other) != _asked(record)
    ]
    write_json(folder.serving, {"format": FORMAT, "servers": [*others, record]})


def records_beside(archive: Path, name: str, version: str) -> list[dict[str, Any]]:
    """The records of an archive that lies in its store, under the name of its model; empty for any other."""
    store = Store(archive.parent)
    if archive.name != store.archive(name, version).name:
        return []
    return read_records(store.build(name, version), sha256_file(archive))


def _asked(record: dict[str, Any]) -> tuple[str, Any, Any]:
    """Which server, whatever its version, ran what."""
    return record["server"].partition(" ")[0], record.get("backend"), record.get("precision", "float32")
