"""`serving.json`: results of checking one archive on servers over HTTP.

    keep_record(folder, {"server": "TorchServe 0.12.0", "archive_sha256": "...", ...})
    read_records(folder)                 # one for each server, the last checked last

It has one record for each server, backend and precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchport.store.files import read_json, write_json
from torchport.store.folders import BuildFolder, Store
from torchport.store.hashing import sha256_file

FORMAT = 2
"""Version of the file's format. Before 2, the file was the last record alone."""

_REQUIRED = {"server": str, "archive_sha256": str, "passed": bool, "metrics": dict}


def read_records(folder: BuildFolder, archive_sha256: str | None = None) -> list[dict[str, Any]]:
    """The records of a build folder for one archive, the last checked last.

    Without `archive_sha256`, they are of the archive that was checked last. Missing, damaged and other
    archives' records are left out.
    """
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
    """`read_records`, limited to archives that contain this certificate."""
    records = read_records(folder, archive_sha256)
    return [record for record in records if record.get("certificate_sha256") == certificate_sha256]


def keep_record(folder: BuildFolder, record: dict[str, Any]) -> None:
    """Add a record, replacing that of the same server, backend and precision.

    Records of other archives are removed.
    """
    others = [
        other for other in read_records(folder, record["archive_sha256"]) if _key(other) != _key(record)
    ]
    write_json(folder.serving, {"format": FORMAT, "servers": [*others, record]})


def records_beside(archive: Path, name: str, version: str) -> list[dict[str, Any]]:
    """The records of an archive in its store, under its model's name.

    Empty for any other archive.
    """
    store = Store(archive.parent)
    if archive.name != store.archive(name, version).name:
        return []
    return read_records(store.build(name, version), sha256_file(archive))


def _key(record: dict[str, Any]) -> tuple[str, Any, Any]:
    """Key of a record: the server without its version, the backend, the precision."""
    return record["server"].partition(" ")[0], record.get("backend"), record.get("precision", "float32")
