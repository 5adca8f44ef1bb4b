"""Archives with some of their entries changed.

rewrite(archive, tmp_path / "changed.mar", {"main.onnx": b"other", "parity.json": None})
resealed(archive, tmp_path / "changed.mar", {"regressor.py": lambda code: code + b"import gone"})
"""

import hashlib
import json
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


def resealed(source: Path, target: Path, changes: Mapping[str, Change]) -> Path:
    """The same, with hashes in parity.json that hold again: nothing about it is wrong until it is run."""
    rewrite(source, target, changes)
    with zipfile.ZipFile(target) as archive:
        digests = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}

    def sealed(content: bytes) -> bytes:
        certificate = json.loads(content)
        bound = certificate["binding"]
        for part in (bound["artifacts"], bound["handler"], certificate["evidence"]):
            part.update({name: digests[name] for name in part if name in digests})
        return json.dumps(certificate).encode()

    unsealed = target.with_suffix(".unsealed")
    target.rename(unsealed)
    rewrite(unsealed, target, {"parity.json": sealed})
    unsealed.unlink()
    return target
