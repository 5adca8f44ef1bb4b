"""Reads `.mar` files: what is in them, whether their hashes hold. Never runs anything of theirs.

contents = inspect_archive(Path("model_store/linear-1.0.mar"))
contents.problems                    # [] where every hash holds
"""

from __future__ import annotations

import json
import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from torchport.errors import ArchiveError
from torchport.hashing import sha256_bytes, sha256_json
from torchport_runtime.options import ARTIFACT_SUFFIX, BackendOptions

MAX_FILES = 10_000
MAX_BYTES = 32 * 2**30
MAX_RATIO = 1000
"""An archive of more files or bytes, or with an entry that grows more than this, is refused."""

_MANIFEST = "MAR-INF/MANIFEST.json"
_NAMES = {"configFile": "model-config.yaml", "requirementsFile": "requirements.txt"}
_MODEL_KEYS = frozenset(["modelName", "modelVersion", "handler", *_NAMES])
"""What torchport's own manifests say of a model; TorchServe would load more than that, unproven."""
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
        return str(self.manifest["model"].get("modelName", ""))

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
        yield archive


def read_entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """One entry's bytes, in pieces.

    Raises:
        ArchiveError: damaged, encrypted, or compressed by a method that is not known here.
    """
    try:
        with archive.open(info) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as err:
        # NotImplementedError, of an unknown method, is a RuntimeError; so is a missing password.
        raise ArchiveError(f"{path}: {info.filename} is damaged or encrypted ({err})") from err


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
            with target.open("wb") as out:
                for chunk in read_entry(path, archive, info):
                    out.write(chunk)


def inspect_archive(path: Path) -> ArchiveContents:
    """Read what an archive holds and hold its certificate's hashes against it.

    Raises:
        ArchiveError: as `open_archive`, or there is no manifest.
    """
    with open_archive(path) as archive:
        contents = {
            info.filename: b"".join(read_entry(path, archive, info))
            for info in archive.infolist()
            if not info.is_dir()
        }
    entries = tuple(Entry(n, len(c), sha256_bytes(c)) for n, c in sorted(contents.items()))
    if _MANIFEST not in contents:
        raise ArchiveError(f"{path}: no {_MANIFEST}: not a TorchServe archive, or truncated")
    manifest = _parse(path, _MANIFEST, contents)
    model = _mapping(path, _MANIFEST, manifest, "model")
    if not all(isinstance(model.get(key, ""), str) for key in ("modelName", "modelVersion", "handler")):
        raise ArchiveError(f"{path}: {_MANIFEST} names no model")
    config_name = model.get("configFile", "")
    certificate = _parse(path, "parity.json", contents)
    read = ArchiveContents(
        path=path,
        entries=entries,
        manifest=manifest,
        config=_parse(path, config_name if isinstance(config_name, str) else "", contents),
        signature=_parse(path, "signature.json", contents),
        certificate=certificate,
        problems=(),
    )
    if not certificate:
        return replace(read, problems=("no parity.json: nothing proves what this archive computes",))
    try:
        return replace(read, problems=tuple(_problems(read)))
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise ArchiveError(
            f"{path}: parity.json or what it names is not of torchport's shape ({err!r})"
        ) from err


def _problems(contents: ArchiveContents) -> Iterator[str]:
    """Everything in the archive that is not what its certificate was made for."""
    certificate, model = contents.certificate, contents.manifest["model"]
    if certificate.get("passed") is not True:
        yield "parity.json did not pass"
    bound = certificate["binding"]
    digests = {entry.name: entry.sha256 for entry in contents.entries}
    assets = {f"assets/{name}": digest for name, digest in bound["assets"].items()}
    required = bound.get("requirements", {})
    expected = {**bound["artifacts"], **bound["handler"], **required, **assets}
    for name, digest in sorted(expected.items()):
        if name in digests and digests[name] != digest:
            yield f"{name} is not what parity.json was made for"
    options = BackendOptions.from_config(contents.config.get("torchport") or {})
    suffix = ARTIFACT_SUFFIX[options.backend]
    served = [f"{graph}{suffix}" for graph in contents.signature.get("graphs", {})]
    for name in ("signature.json", *served, *bound["handler"], *required, *assets):
        if name not in digests:
            yield f"{name} is missing"
    if not all(r["passed"] for r in certificate["results"] if r["backend"] == options.backend):
        yield f"the backend {options.backend} did not pass parity"
    if options.numerics() != bound["options"].get(options.backend):
        yield f"the options of {options.backend} in the model config are not those of parity.json"
    handler_options = (contents.config.get("torchport") or {}).get("handler") or {}
    if sha256_json(handler_options) != bound["handler_options"]:
        yield "the handler's options in the model config are not those of parity.json"
    for key, value in model.items():
        if key not in _MODEL_KEYS or (key in _NAMES and value != _NAMES[key]):
            yield f"the manifest says {key} {value!r}, which torchport's archives do not"
    if [model.get("handler")] != list(bound["handler"]):
        yield f"the manifest's handler {model.get('handler')!r} is not that of parity.json"
    if (contents.name, contents.version) != (certificate["recipe"], certificate["version"]):
        yield f"the manifest's model {contents.name} {contents.version} is not that of parity.json"
    prefix = "torchport_runtime/"
    runtime = {n.removeprefix(prefix): d for n, d in digests.items() if n.startswith(prefix)}
    if sha256_json(runtime) != bound["runtime"]:
        yield "torchport_runtime is not what parity.json was made for"
    known = {*expected, "parity.json", _MANIFEST, model.get("configFile")}
    for name in digests:
        if name not in known and not name.startswith(prefix):
            yield f"{name} is in the archive, but not in its certificate"


def _mapping(path: Path, name: str, value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    if not isinstance(inner, dict):
        raise ArchiveError(f"{path}: {name} has no {key!r}")
    return inner


def _parse(path: Path, name: str, contents: dict[str, bytes]) -> dict[str, Any]:
    if name not in contents:
        return {}
    try:
        text = contents[name].decode("utf-8")
        is_json = name.endswith(".json")
        value = json.loads(text, object_pairs_hook=_each_once) if is_json else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as err:
        raise ArchiveError(f"{path}: {name} cannot be read ({err})") from err
    if not isinstance(value, dict):
        raise ArchiveError(f"{path}: {name} holds {type(value).__name__}, expected an object")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which a name that comes twice says two things."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in one object")
    return found


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
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(f"{path}: {info.filename!r} is packed by a method that nobody needs: refused")
        if info.filename in seen:
            raise ArchiveError(f"{path}: {info.filename!r} is in it twice: refused")
        if info.file_size > MAX_RATIO * max(info.compress_size, 1024):
            raise ArchiveError(f"{path}: {info.filename!r} grows over {MAX_RATIO} times: refused")
        seen.add(info.filename)
