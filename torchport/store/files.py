"""Reads and writes files atomically: a file is written whole or not at all.

write_json(folder / "export.json", {"inputs": {}})
read_json(folder / "export.json", "inputs")      # None if it is missing or damaged
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchport.errors import TorchportError

_STRAY = re.compile(r"\.[a-z0-9_]{8}\Z")
"""The suffix that `tempfile.mkstemp` gives to a name."""


def write_bytes(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write `content` to `path`, whole or not at all.

    The file's permissions are never wider than `mode`.

    Raises:
        TorchportError: the folder cannot be written, or the disk is full; `path` is as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
        os.replace(temporary, path)
    except OSError as err:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise TorchportError(f"cannot write {path}: {err.strerror or err}; nothing was changed") from err


def remove_strays(folder: Path, name: str = "*") -> None:
    """Remove temporary files that a killed `write_bytes` left for that name.

    The caller must hold the folder's lock.
    """
    for path in folder.glob(f".{name}.*"):
        if _STRAY.search(path.name):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_bytes(path, json_bytes(value))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """The bytes that `write_json` writes for an object."""
    return (json.dumps(value, indent=2) + "\n").encode()


def read_json(path: Path, *required: str) -> dict[str, Any] | None:
    """The object in `path`; None if missing, damaged, or without a required key.

    A stage that reads None makes the file again.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    whole = isinstance(value, dict) and all(name in value for name in required)
    return value if whole else None
