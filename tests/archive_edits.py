"""Archives with some of their entries changed.

rewrite(archive, tmp_path / "changed.mar", {"main.onnx": b"other", "parity.json": None})
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

Change = bytes | Callable[[bytes], bytes] | None


def rewrite(source: Path, target: Path, changes: Mapping[str, Change]) -> Path:
    """A copy of an archive with entries replaced, added, changed by a function of what they were (nothing,
    where there is none), or (None) left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        names = old.namelist()
        for name in (*names, *(added for added in changes if added not in names)):
            content = old.read(name) if name in names else b""
            change = changes.get(name, content)
            changed = change(content) if callable(change) else change
            if changed is not None:
                new.writestr(name, changed)
    return target
