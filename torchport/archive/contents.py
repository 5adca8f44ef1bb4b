"""Reads `.mar` files and checks their hashes, without running anything in them.

contents = inspect_archive(Path("model_store/linear-1.0.mar"))
contents.problems                    # [] if every hash matches
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from torchport.archive.config import parse_config
from torchport.archive.entries import extract, open_archive, read_entry
from torchport.errors import ArchiveError
from torchport.store.hashing import sha256_json
from torchport.store.variants import Variant, contained_variants, has_passed
from torchport_runtime.errors import BackendError
from torchport_runtime.options import BackendOptions

__all__ = ["ArchiveContents", "Entry", "extract", "inspect_archive"]

MAX_JSON = 32 << 20
"""Maximum bytes of a manifest, a signature or a certificate. A certificate contains a sample request. An
archive with a larger one is refused."""

MAX_YAML = 1 << 20
"""Maximum bytes of a model config."""

_MANIFEST = "MAR-INF/MANIFEST.json"
_NAMES = {"configFile": "model-config.yaml", "requirementsFile": "requirements.txt"}
_MODEL_KEYS = frozenset(["modelName", "modelVersion", "handler", *_NAMES])
"""Keys of a model in torchport's own manifests. TorchServe would load more than these, unverified."""

_NAMED_BY_NUMBER = ("modelName", "modelVersion")
"""Keys of a model whose values may be numbers, as on TorchServe."""


@dataclass(frozen=True)
class Entry:
    """One file of an archive; `size` is in bytes."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ArchiveContents:
    """The files and records in an archive.

    `certificate` and `config` are empty in archives of other tools, `int8_certificate` in those without
    an INT8 version.
    """

    path: Path
    entries: tuple[Entry, ...]
    manifest: dict[str, Any]
    config: dict[str, Any]
    signature: dict[str, Any]
    certificate: dict[str, Any]
    int8_certificate: dict[str, Any]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.manifest["model"].get("modelName", ""))

    @property
    def version(self) -> str:
        return str(self.manifest["model"].get("modelVersion", ""))

    @property
    def variants(self) -> list[Variant]:
        """Variants whose artifacts are all in the archive.

        INT8 is left out, because it has its own gate.
        """
        return contained_variants(self.signature.get("graphs", {}), {entry.name for entry in self.entries})


def inspect_archive(path: Path) -> ArchiveContents:
    """Read an archive's contents and compare them with its certificate's hashes.

    Raises:
        ArchiveError: as `open_archive`, or the manifest is missing or cannot be read.
    """
    texts: dict[str, bytes] = {}
    with open_archive(path) as archive:
        infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        if _MANIFEST not in infos:
            raise ArchiveError(f"{path}: no {_MANIFEST}: not a TorchServe archive, or truncated")
        texts[_MANIFEST] = _text(path, archive, infos[_MANIFEST])
        manifest = _parse(path, _MANIFEST, texts)
        model = _mapping(path, _MANIFEST, manifest, "model")
        _name_by_text(model, texts[_MANIFEST])
        if not all(isinstance(model.get(key, ""), str) for key in (*_NAMED_BY_NUMBER, "handler")):
            raise ArchiveError(
                f"{path}: {_MANIFEST} names no model: modelName and modelVersion are to be text or numbers, "
                "handler text"
            )
        config_name = model.get("configFile") or ""
        for name in ("signature.json", "parity.json", "int8.json", config_name):
            if isinstance(name, str) and name in infos:
                texts[name] = _text(path, archive, infos[name])
        entries = tuple(_entry(path, archive, infos[name]) for name in sorted(infos))
    certificate = _parse(path, "parity.json", texts)
    read = ArchiveContents(
        path=path,
        entries=entries,
        manifest=manifest,
        config=_parse(path, config_name if isinstance(config_name, str) else "", texts),
        signature=_parse(path, "signature.json", texts),
        certificate=certificate,
        int8_certificate=_parse(path, "int8.json", texts),
        problems=(),
    )
    if not certificate:
        return replace(read, problems=("no parity.json: nothing proves what this archive computes",))
    try:
        return replace(read, problems=tuple(_problems(read)))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as err:
        raise ArchiveError(
            f"{path}: a certificate or what it names is not of torchport's shape ({err!r})"
        ) from err
    except BackendError as err:
        raise ArchiveError(f"{path}: {err}") from err


def _entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    digest = hashlib.sha256()
    for chunk in read_entry(path, archive, info):
        digest.update(chunk)
    return Entry(info.filename, info.file_size, digest.hexdigest())


def _text(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry that is parsed as a whole."""
    most = MAX_JSON if info.filename.endswith(".json") else MAX_YAML
    if info.file_size > most:
        raise ArchiveError(f"{path}: {info.filename} is larger than {most >> 20} MiB: refused")
    return b"".join(read_entry(path, archive, info))


def _problems(contents: ArchiveContents) -> Iterator[str]:
    """Differences between the archive and what its certificate was made for."""
    certificate, model = contents.certificate, contents.manifest["model"]
    if certificate.get("passed") is not True:
        yield "parity.json did not pass"
    bound = certificate["binding"]
    digests = {entry.name: entry.sha256 for entry in contents.entries}
    assets = {f"assets/{name}": digest for name, digest in bound["assets"].items()}
    required = bound.get("requirements", {})
    evidence = certificate.get("evidence", {})
    expected = {**bound["artifacts"], **bound["handler"], **required, **assets, **evidence}
    quantised = contents.int8_certificate.get("binding", {}).get("int8", {})
    for name, digest in sorted(expected.items()):
        if name in digests and digests[name] != digest:
            yield f"{name} is not what parity.json was made for"
    options = BackendOptions.from_config(contents.config.get("torchport") or {})
    served = [f"{graph}{options.artifact_suffix}" for graph in contents.signature.get("graphs", {})]
    for name in ("signature.json", *served, *bound["handler"], *required, *assets, *evidence):
        if name not in digests:
            yield f"{name} is missing"
    serves = Variant(options.backend, "float32" if options.precision == "int8" else options.precision)
    for variant in sorted({serves, *contents.variants}, key=str):
        if not has_passed(certificate, variant):
            yield f"the backend {variant} did not pass parity"
    yield from _int8_problems(contents, digests, options)
    own = contents.int8_certificate.get("binding", {}).get("options")
    proven = own if options.precision == "int8" else bound["options"].get(str(serves))
    if options.numerics() != proven:
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
    known = {
        *expected,
        *quantised,
        *(["int8.json"] if contents.int8_certificate else []),
        "parity.json",
        _MANIFEST,
        model.get("configFile"),
    }
    for name in digests:
        if name not in known and not name.startswith(prefix):
            yield f"{name} is in the archive, but not in its certificate"


def _int8_problems(
    contents: ArchiveContents, digests: dict[str, str], options: BackendOptions
) -> Iterator[str]:
    """Differences from the INT8 version's certificate.

    That certificate must be of the same model as parity.json.
    """
    if not contents.int8_certificate:
        if options.precision == "int8":
            yield "int8.json is missing: nothing says what precision int8 is worth here"
        return
    bound, parity = contents.int8_certificate["binding"], contents.certificate["binding"]
    for name, digest in sorted(bound["int8"].items()):
        if digests.get(name) != digest:
            yield f"{name} is {'not what int8.json was made for' if name in digests else 'missing'}"
    for name, digest in sorted(bound["artifacts"].items()):
        if parity["artifacts"].get(name) != digest:
            yield f"int8.json was made of another {name} than parity.json"
    for key in ("handler", "handler_options", "runtime", "assets"):
        if bound[key] != parity[key]:
            yield f"int8.json was made with another {key.replace('_', ' ')} than parity.json"


def _mapping(path: Path, name: str, value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    if not isinstance(inner, dict):
        raise ArchiveError(f"{path}: {name} has no {key!r}")
    return inner


def _name_by_text(model: dict[str, Any], manifest: bytes) -> None:
    """Turn a name or a version that is a number into its text in the manifest: 1.10 is `1.10`, not `1.1`."""
    numbers = [key for key in _NAMED_BY_NUMBER if type(model.get(key)) in (int, float)]
    if numbers:
        texts = json.loads(manifest, parse_int=str, parse_float=str, parse_constant=str)["model"]
        model.update({key: texts[key] for key in numbers})


def _parse(path: Path, name: str, texts: dict[str, bytes]) -> dict[str, Any]:
    if name not in texts:
        return {}
    try:
        text = texts[name].decode("utf-8")
        is_json = name.endswith(".json")
        value = json.loads(text, object_pairs_hook=_each_once) if is_json else parse_config(text)
    except (ValueError, RecursionError, yaml.YAMLError) as err:
        raise ArchiveError(f"{path}: {name} cannot be read ({err})") from err
    if not isinstance(value, dict):
        raise ArchiveError(f"{path}: {name} holds {type(value).__name__}, expected an object")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused if a name comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in one object")
    return found
