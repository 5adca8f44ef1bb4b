"""Whether an archive was proven on this machine: what `torchport verify --store DIR` wrote down, held against
the machine, its libraries and the archive as they are now.

    require_local_parity(store.archive("linear", "1.0"), "onnxruntime")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchport import machine
from torchport.errors import ArchiveError
from torchport.hashing import sha256_file
from torchport.store import read_json
from torchport.variants import Variant
from torchport.versions import library_versions

FOLDER = ".local_parity"
"""Hidden: TorchServe takes any visible folder of a store for a model."""

LIBRARIES = {
    "onnxruntime": ("onnxruntime", "numpy", "pillow"),
    "torchscript": ("torch", "numpy", "pillow"),
    "pt2": ("torch", "numpy", "pillow"),
    "aotinductor": ("torch", "numpy", "pillow"),
}
"""What computes an answer, by backend; the first is the backend itself."""


def record_path(archive: Path) -> Path:
    """Where the outcome of an archive of a store is kept."""
    return archive.parent / FOLDER / f"{archive.name.removesuffix('.mar')}.json"


def require_local_parity(archive: Path, backend: str, precision: str = "float32") -> None:
    """Hold what was written down against this machine, these libraries and these bytes.

    Raises:
        ArchiveError: nothing was, or it did not pass, or something has changed since.
    """
    again = "torchport verify --store DIR, on this machine"
    record = read_json(record_path(archive), "archive_sha256", "machine", "libraries", "passed", "results")
    if record is None:
        raise ArchiveError(f"{archive.name} has not been proven on this machine: {again}")
    try:
        _hold(archive, backend, precision, record, again)
    except (AttributeError, KeyError, TypeError) as err:
        path = record_path(archive)
        raise ArchiveError(f"{path.parent.name}/{path.name} is damaged ({err!r}): {again}") from err


def _hold(archive: Path, backend: str, precision: str, record: dict[str, Any], again: str) -> None:
    changed = []
    if record["archive_sha256"] != sha256_file(archive):
        changed.append("the archive")
    now = machine.describe()
    changed += [f"the machine's {key}" for key in now if record["machine"].get(key) != now[key]]
    before, libraries = record["libraries"].get(backend, {}), library_versions(*LIBRARIES[backend])
    changed += [name for name in sorted({*before, *libraries}) if before.get(name) != libraries.get(name)]
    if changed:
        raise ArchiveError(f"{archive.name}: since it was proven, {', '.join(changed)} changed: {again}")
    variant = Variant(backend, precision)
    own = [r for r in record["results"] if Variant.of(r) == variant]
    failures = [f for r in own for f in r["failures"]]
    if failures or not own:
        reason = failures[0] if failures else f"the backend {variant} was not run"
        raise ArchiveError(f"{archive.name} did not pass on this machine: {reason}")
