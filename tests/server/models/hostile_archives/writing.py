"""Archives that are whole but for one thing.

Whatever a handler here would do, it would leave a mark first.
"""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

MANIFEST = "MAR-INF/MANIFEST.json"
HANDLER = "model_handler.py"

ECHO = """
    def handle(data, context):
        return data and [context.model_name for _ in data]
"""

Entries = dict[str | zipfile.ZipInfo, bytes]


def manifest(**model: object) -> bytes:
    described = {"modelName": "hostile", "modelVersion": "1.0", "handler": HANDLER} | model
    return json.dumps({"runtime": "python", "model": described}).encode()


def leaves_mark(place: Path) -> bytes:
    return f"open({str(place / 'mark')!r}, 'w').close()\n\ndef handle(data, context): return data\n".encode()


def written(
    place: Path, entries: Entries, *, change: Callable[[zipfile.ZipFile], None] | None = None
) -> Path:
    """`hostile-1.0.mar` in the store: a whole archive, and what `entries` add to it or change in it."""
    path = place / "store" / "hostile-1.0.mar"
    whole: Entries = {MANIFEST: manifest(), HANDLER: leaves_mark(place)} | entries
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in whole.items():
            archive.writestr(name, content)
        if change is not None:
            change(archive)
    return path


def named(name: str, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    """An entry of any name: `ZipInfo` itself ends one at a NUL."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.external_attr = (kind | 0o777) << 16
    return info


def whole(place: Path) -> bytes:
    return written(place, {}).read_bytes()


def bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)
