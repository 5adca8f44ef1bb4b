"""`model_store/`: an archive per model version, and `.build/` with its sources.

    folder = Store(Path("model_store")).build("linear", "1.0")
    folder.weights            # model_store/.build/linear/1.0/weights.pt

The build folder is hidden because TorchServe's `load_models=all` takes any visible folder for a model.
Files are written under a temporary name and renamed: a stage that is killed leaves the old file or the
new one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from filelock import FileLock, Timeout
from packaging.version import InvalidVersion, Version

from torchport.errors import StaleError, TorchportError
from torchport.store.files import read_json, remove_strays
from torchport.store.hashing import sha256_file

_ARCHIVE = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)\.mar\Z")


def archive_identity(path: str) -> tuple[str, str]:
    """Model name and version by an archive's file name; the version is empty if the name has none."""
    name = path.rsplit("/", 1)[-1]
    match = _ARCHIVE.match(name)
    return (match["name"], match["version"]) if match else (name.removesuffix(".mar"), "")


class _File:
    """An attribute of a build folder: the path of the file or folder of this name."""

    def __init__(self, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, folder: None, owner: type[BuildFolder]) -> _File: ...

    @overload
    def __get__(self, folder: BuildFolder, owner: type[BuildFolder]) -> Path: ...

    def __get__(self, folder: BuildFolder | None, owner: type[BuildFolder]) -> _File | Path:
        return self if folder is None else folder.path / self._name


@dataclass(frozen=True)
class BuildFolder:
    """The files of one model version, from the weights to the servers' records."""

    path: Path
    name: str
    version: str

    weights = _File("weights.pt")
    checkpoint = _File("checkpoint.pt")
    assets = _File("assets")
    training = _File("training.json")
    export = _File("export.json")
    signature = _File("signature.json")
    parity = _File("parity.json")
    measures = _File("measures.json")
    report = _File("parity.html")
    evidence = _File("evidence.npz")
    serving = _File("serving.json")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other commands off this model version while a stage writes.

        Raises:
            TorchportError: another command holds it, or the folder cannot be written.
        """
        held = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held.acquire()
        except Timeout as err:
            raise TorchportError(
                f"another torchport command is working on {self.name} {self.version}: wait for it"
            ) from err
        except OSError as err:
            raise TorchportError(f"cannot write {self.path}: {err.strerror or err}") from err
        try:
            remove_strays(self.path)
            yield
        finally:
            held.release()

    def training_record(self) -> dict[str, Any] | None:
        """The record that training wrote; None if missing or damaged."""
        return read_json(self.training, "inputs", "metrics", "weights_sha256", "assets")

    def export_record(self) -> dict[str, Any] | None:
        return read_json(self.export, "inputs", "artifacts")

    def certificate(self) -> dict[str, Any] | None:
        return read_json(
            self.parity, "passed", "failures", "binding", "results", "libraries", "devices", "reference"
        )

    def recorded_artifacts(self) -> dict[str, str]:
        """SHA-256 of the artifacts by file name, as the export stage recorded them.

        Raises:
            StaleError: nothing was exported.
        """
        record = self.export_record()
        if record is None:
            raise StaleError(f"{self.name} {self.version} is not exported: torchport export {self.name}")
        return {name: entry["sha256"] for name, entry in record["artifacts"].items()}

    def require_artifacts(self) -> dict[str, str]:
        """SHA-256 of the artifacts by file name, after checking every file.

        Raises:
            StaleError: a file is missing or is not what was exported; the message names it.
        """
        recorded = self.recorded_artifacts()
        wrong = []
        for name, digest in recorded.items():
            path = self.path / name
            if not path.is_file():
                wrong.append(f"{name} is missing")
            elif sha256_file(path) != digest:
                wrong.append(f"{name} has changed since it was exported")
        if wrong:
            raise StaleError(
                f"{self.name} {self.version}: {'; '.join(wrong)}: torchport export {self.name} --force"
            )
        return recorded


@dataclass(frozen=True)
class Store:
    """A model store's folder."""

    path: Path

    def build(self, name: str, version: str) -> BuildFolder:
        return BuildFolder(self.path / ".build" / name / version, name, version)

    def built_versions(self, name: str) -> list[str]:
        """The versions of a model that have a build folder, oldest first."""
        folders = (self.path / ".build" / name).glob("*") if _is_plain(name) else ()
        return sorted((folder.name for folder in folders if folder.is_dir()), key=version_key)

    def archive(self, name: str, version: str) -> Path:
        return self.path / f"{name}-{version}.mar"

    def archives(self) -> dict[str, dict[str, Path]]:
        """Archive paths by model name and version, oldest version first."""
        found: dict[str, dict[str, Path]] = {}
        for path in self.path.glob("*.mar") if self.path.is_dir() else ():
            match = _ARCHIVE.match(path.name)
            if match:
                found.setdefault(match["name"], {})[match["version"]] = path
        return {
            name: {version: versions[version] for version in sorted(versions, key=version_key)}
            for name, versions in sorted(found.items())
        }

    def archive_files(self) -> list[Path]:
        """Every `.mar` file of the store.

        Those of `archives` come first, in that order, then those with other names.
        """
        named = [path for versions in self.archives().values() for path in versions.values()]
        others = sorted(set(self.path.glob("*.mar")) - set(named)) if self.path.is_dir() else []
        return [*named, *others]


def _is_plain(name: str) -> bool:
    return Path(name).name == name


def version_key(version: str) -> tuple[int, Version, str]:
    """Sort key of model versions. Strings that are no version number come first."""
    try:
        return 1, Version(version), version
    except InvalidVersion:
        return 0, Version("0"), version
