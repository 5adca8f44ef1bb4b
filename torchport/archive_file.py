"""Reads `.mar` files: what is in them, whether their hashes hold. Never runs anything of theirs.

contents = inspect_archive(Path("model_store/linear-1.0.mar"))
contents.problems                    # [] where every hash holds
"""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from torchport.errors import ArchiveError
from torchport.hashing import sha256_bytes, sha256_json

MAX_FILES = 10_000
MAX_BYTES = 32 * 2**30
MAX_RATIO = 1000
"""An archive of more files or bytes, or with an entry that grows more than this, is refused."""

_MANIFEST = "MAR-INF/MANIFEST.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ArchiveContents:
    """What an archive says of itself. `certificate` and `config` are empty in archives of others."""

    path: Path
    entries: tuple[Entry, ...]
    manifest: dict[str, Any]
    config: dict[str, Any]
    signature: dict[str, Any]
    certificate: dict[str, Any]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.manifest["model"]["modelName"])

    @property
    def version(self) -> str:
        return str(self.manifest["model"].get("modelVersion", ""))


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a `.mar` file after looking at every name and size in it.

    Raises:
        ArchiveError: no such file, not a zip, truncated, too large, an absolute name, `..`, a link, a
            name twice.
    """
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as err:
        raise ArchiveError(f"no archive {path}") from err
    except (zipfile.BadZipFile, OSError, ValueError) as err:
        raise ArchiveError(f"{path}: not a .mar file, or truncated ({err})") from err
    with archive:
        _refuse_hostile(path, archive.infolist())
        try:
            yield archive
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as err:
            raise ArchiveError(f"{path}: damaged ({err})") from err


def extract(path: Path, folder: Path, *, only: set[str] | None = None) -> None:
    """Unpack an archive below `folder`; with `only`, just these names and what stands in folders.

    Raises:
        ArchiveError: as `open_archive`.
    """
    with open_archive(path) as archive:
        for info in archive.infolist():
            if info.is_dir() or (only is not None and info.filename not in only):
                continue
            target = folder / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, target.open("wb") as out:
                while chunk := source.read(_CHUNK):
                    out.write(chunk)


def inspect_archive(path: Path) -> ArchiveContents:
    """Read what an archive holds and hold its certificate's hashes against it.

    Raises:
        ArchiveError: as `open_archive`, or there is no manifest.
    """
    with open_archive(path) as archive:
        contents = {i.filename: archive.read(i) for i in archive.infolist() if not i.is_dir()}
    entries = tuple(Entry(n, len(c), sha256_bytes(c)) for n, c in sorted(contents.items()))
    if _MANIFEST not in contents:
        raise ArchiveError(f"{path}: no {_MANIFEST}: not a TorchServe archive")
    manifest = _parse(path, _MANIFEST, contents)
    if not isinstance(manifest.get("model"), dict) or "modelName" not in manifest["model"]:
        raise ArchiveError(f"{path}: {_MANIFEST} names no model")
    certificate = _parse(path, "parity.json", contents)
    return ArchiveContents(
        path=path,
        entries=entries,
        manifest=manifest,
        config=_parse(path, str(manifest["model"].get("configFile", "")), contents),
        signature=_parse(path, "signature.json", contents),
        certificate=certificate,
        problems=tuple(_problems(certificate, manifest, entries)),
    )


def _problems(
    certificate: dict[str, Any], manifest: dict[str, Any], entries: tuple[Entry, ...]
) -> Iterator[str]:
    if not certificate:
        yield "no parity.json: nothing proves that this archive computes what was trained"
        return
    if not certificate.get("passed"):
        yield "parity.json did not pass"
    bound = certificate.get("binding", {})
    digests = {entry.name: entry.sha256 for entry in entries}
    expected = {**bound.get("artifacts", {}), **bound.get("handler", {})}
    expected |= {f"assets/{name}": digest for name, digest in bound.get("assets", {}).items()}
    for name, digest in sorted(expected.items()):
        if name in digests and digests[name] != digest:
            yield f"{name} is not what parity.json was made for"
    for required in (
        "signature.json",
        *bound.get("handler", {}),
        *(f"assets/{name}" for name in bound.get("assets", {})),
    ):
        if required not in digests:
            yield f"{required} is missing"
    prefix = "torchport_runtime/"
    runtime = {
        name.removeprefix(prefix): digest
        for name, digest in digests.items()
        if name.startswith(prefix) and name.endswith(".py")
    }
    if sha256_json(runtime) != bound.get("runtime"):
        yield "torchport_runtime is not what parity.json was made for"
    known = {*expected, "parity.json", _MANIFEST, manifest["model"].get("configFile")}
    for name in digests:
        if name not in known and not name.startswith(prefix):
            yield f"{name} is in the archive, but not in its certificate"


def _parse(path: Path, name: str, contents: dict[str, bytes]) -> dict[str, Any]:
    if name not in contents:
        return {}
    try:
        text = contents[name].decode("utf-8")
        value = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as err:
        raise ArchiveError(f"{path}: {name} cannot be read ({err})") from err
    if not isinstance(value, dict):
        raise ArchiveError(f"{path}: {name} holds {type(value).__name__}, expected an object")
    return value


def _refuse_hostile(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    if len(infos) > MAX_FILES or sum(info.file_size for info in infos) > MAX_BYTES:
        raise ArchiveError(f"{path}: more than {MAX_FILES} files or {MAX_BYTES >> 30} GiB: refused")
    seen: set[str] = set()
    for info in infos:
        name = PurePosixPath(info.filename)
        mode = info.external_attr >> 16
        windows = "\\" in info.filename or ":" in info.filename
        if name.is_absolute() or ".." in name.parts or windows or "\0" in info.filename:
            raise ArchiveError(f"{path}: the name {info.filename!r} leads out of the archive: refused")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ArchiveError(f"{path}: {info.filename!r} is a link or a device: refused")
        if info.filename in seen:
            raise ArchiveError(f"{path}: {info.filename!r} is in it twice: refused")
        if info.file_size > MAX_RATIO * max(info.compress_size, 1024):
            raise ArchiveError(f"{path}: {info.filename!r} grows over {MAX_RATIO} times: refused")
        seen.add(info.filename)
