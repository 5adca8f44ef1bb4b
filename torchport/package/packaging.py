"""Packages verified artifacts as `model_store/NAME-VERSION.mar`.

    result = package(load_recipe("linear"), store)
    result.path                          # model_store/linear-1.0.mar

A stock TorchServe runs the archive as it is. torch-model-archiver makes the manifest and the layout.
torchport writes the zip with sorted names, fixed dates and no compression, so that the same inputs give
the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from torchport.archive.contents import inspect_archive
from torchport.errors import ArchiveError, RecipeError
from torchport.model.certificate import (
    REQUIREMENTS,
    binding,
    require_certificate,
    requirements,
    runtime_folder,
)
from torchport.model.exported import exported_backends, exported_variants, not_exported
from torchport.model.int8_certificate import CERTIFICATE as INT8_CERTIFICATE
from torchport.model.int8_certificate import int8_files, read_int8_certificate, require_int8
from torchport.package.configuration import Configuration
from torchport.package.tuning_record import Tuning, tuning_of
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import find_handler
from torchport.store.files import remove_strays, write_bytes
from torchport.store.folders import BuildFolder, Store
from torchport.store.hashing import sha256_bytes, sha256_file
from torchport.store.variants import Variant, has_passed
from torchport.store.zips import reproducible_zip
from torchport.verify.evidence import FILE
from torchport.verify.report.page import renew_report
from torchport_runtime import BackendOptions
from torchport_runtime.options import HALF_PRECISIONS

CREATED_ON = "01/01/1980 00:00:00"

CONFIG = "model-config.yaml"


@dataclass(frozen=True)
class PackageResult:
    """Result of the packaging stage.

    `done` is False if an archive of the same bytes existed already. `tuning` is the tuning that was
    applied, or why none was. `changed` are settings that differ from the archive that this one
    replaced.
    """

    done: bool
    path: Path
    sha256: str
    tuning: Tuning = field(default_factory=Tuning)
    changed: tuple[str, ...] = ()


def package(
    recipe: Recipe,
    store: Store,
    *,
    backends: Sequence[str] | None = None,
    precision: str | None = None,
    shadow: str | None = None,
    force: bool = False,
) -> PackageResult:
    """Make the archive of a recipe whose exports have been verified.

    `backends` are those whose artifacts are packaged, the recipe's `ships` unless given; the first
    serves by default. Verified half precisions are packaged too, and INT8 graphs if they exist.
    `precision` is the one that serves by default, the recipe's `options.precision` unless given. If
    `torchport tune` has chosen a configuration for exactly these bytes and for the given arguments, it
    is used. `shadow` is a backend that live traffic is compared with, and its share ("torchscript=0.1",
    "off"), the recipe's `options.shadow` unless given.

    Raises:
        StaleError: no passing certificate of exactly these bytes; the message names what is wrong. Or
            the INT8 graphs are not of them, or are missing although precision is int8.
        BackendError: a precision that is not known, or that the first backend does not have.
        RecipeError: a backend that the recipe does not export, a shadow that would not be in the archive.
        ArchiveError: torch-model-archiver is missing or failed.
    """
    folder = store.build(recipe.name, recipe.version)
    given, backends = tuple(backends or ()), tuple(backends or recipe.ships)
    require_exported(recipe, folder, backends)
    default = Configuration.default_of(recipe)
    asked = replace(default, backend=backends[0], precision=precision or default.precision)
    asked.model_config(recipe, shadow)  # What it is asked for wrongly is told before anything else.
    with folder.lock():
        bound = binding(recipe, folder)
        tuning = tuning_of(recipe, folder, backends=given, precision=precision, bound=bound)
        config = (tuning.configuration or asked).model_config(recipe, shadow)
        content = archive_content(recipe, folder, backends, config, bound)
        digest = sha256_bytes(content)
        path = store.archive(recipe.name, recipe.version)
        remove_strays(path.parent, path.name)
        if path.is_file() and sha256_file(path) == digest and not force:
            return PackageResult(False, path, digest, tuning)
        changed = _changed_settings(path, config)
        write_bytes(path, content)
        renew_report(folder, digest)  # What servers answered of another archive is no part of it any more.
        return PackageResult(True, path, digest, tuning, changed)


def _changed_settings(path: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """Settings of the existing archive that the new one changes, such as `backend: pt2`.

    Empty if there is no archive of torchport.
    """
    try:
        before = inspect_archive(path).config if path.is_file() else {}
    except ArchiveError:
        before = {}
    if not isinstance(before.get("torchport"), dict):
        return ()
    told, now = ({**c, **c["torchport"], "torchport": None} for c in (before, config))
    changed = (key for key in {*told, *now} if told.get(key) != now.get(key))
    return tuple(f"{key}: {told.get(key)}" for key in sorted(changed, key=str))


def require_exported(recipe: Recipe, folder: BuildFolder, backends: Sequence[str]) -> None:
    """Check that backends are among those that the recipe exports.

    Raises:
        RecipeError: a backend that the recipe does not export.
    """
    for backend in backends:
        exported = exported_backends(recipe, folder)
        if backend not in exported:
            raise RecipeError(
                f"backend {backend!r} is not among those that {recipe.path.name} exports: "
                f"{', '.join(exported)}"
            )


def archive_content(
    recipe: Recipe,
    folder: BuildFolder,
    backends: Sequence[str],
    config: dict[str, Any],
    bound: Mapping[str, Any] | None = None,
) -> bytes:
    """The archive's bytes, made of verified artifacts.

    `config` is its `model-config.yaml`.

    `bound` is the folder's `binding`, where a stage has made it under the same lock.

    Raises:
        StaleError, RecipeError, ArchiveError: as `package`.
    """
    options = BackendOptions.from_config(config["torchport"])
    if options.backend not in backends:
        raise RecipeError(
            f"backend {options.backend!r}, which is to serve, is not among those that the archive carries: "
            f"{', '.join(backends)}"
        )
    watching = options.shadow
    if watching is not None and watching.backend not in backends:
        raise RecipeError(
            f"shadow {watching.backend!r} is not among the backends that the archive carries: "
            f"{', '.join(backends)}"
        )
    bound = binding(recipe, folder) if bound is None else bound
    certificate = require_certificate(recipe, folder, bound)
    chosen = [Variant(options.backend, options.precision)]
    chosen += [Variant(watching.backend, watching.precision)] if watching is not None else []
    quantised = "onnxruntime" in backends and (
        any(v.precision == "int8" for v in chosen) or read_int8_certificate(folder) is not None
    )
    if quantised:
        require_int8(recipe, folder, bound)
    carried = [*int8_files(recipe), INT8_CERTIFICATE] if quantised else []
    proven = [
        v for v in exported_variants(recipe, folder) if v.backend in backends and has_passed(certificate, v)
    ]
    halves = [variant for variant in chosen if variant.precision in HALF_PRECISIONS]
    for variant in [*map(Variant, backends), *halves]:
        if variant not in proven:
            raise ArchiveError(_why_not(recipe, folder, variant))
    carried += [variant.artifact(graph) for graph in recipe.signatures() for variant in proven]
    try:
        with tempfile.TemporaryDirectory(prefix="torchport-package-") as name:
            return _zip(_layout(recipe, folder.path, carried, config, Path(name)))
    except OSError as err:
        raise ArchiveError(
            f"cannot write the archive's files below {tempfile.gettempdir()}: {err.strerror or err}; "
            "nothing was changed"
        ) from err


def _why_not(recipe: Recipe, folder: BuildFolder, variant: Variant) -> str:
    """Why a variant cannot serve."""
    if variant in exported_variants(recipe, folder):
        return f"backend {str(variant)!r} did not pass parity: see parity.json"
    reason = not_exported(folder).get(str(variant))
    return (
        f"precision {variant.precision!r}: {recipe.path.name} is not exported in it for {variant.backend}: "
        + (reason or f"put {variant.precision!r} into its precisions, export and verify")
    )


def _layout(
    recipe: Recipe,
    build: Path,
    carried: Sequence[str],
    settings: dict[str, Any],
    work: Path,
) -> Path:
    """Lay out the archive's files below `work` by torch-model-archiver.

    Returns their folder.
    """
    extra = work / "extra"
    extra.mkdir()
    for name in ("signature.json", "parity.json", FILE, *carried):
        shutil.copy(build / name, extra)
    shutil.copytree(
        runtime_folder(), extra / "torchport_runtime", ignore=shutil.ignore_patterns("__pycache__")
    )
    if any((build / "assets").iterdir()):
        shutil.copytree(build / "assets", extra / "assets")
    config = work / CONFIG
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (work / REQUIREMENTS).write_bytes(requirements(recipe))
    temporary, out = work / "tmp", work / "out"
    temporary.mkdir()
    out.mkdir()
    command = [
        sys.executable,
        "-m",
        "model_archiver.model_packaging",
        *("--model-name", recipe.name),
        *("--version", recipe.version),
        *("--handler", str(find_handler(recipe))),
        *("--extra-files", str(extra)),
        *("--config-file", str(config)),
        *(("--requirements-file", str(work / REQUIREMENTS)) if recipe.requirements else ()),
        *("--archive-format", "no-archive"),
        *("--export-path", str(out)),
    ]
    # The archiver deletes $TMPDIR/<model name>, whosever it is: it gets a folder of its own.
    environment = os.environ | {"TMPDIR": str(temporary)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "No module named" in done.stderr and "model_archiver" in done.stderr:
        raise ArchiveError("packaging needs torch-model-archiver: pip install 'torchport[torchserve]'")
    folder = out / recipe.name
    manifest = folder / "MAR-INF" / "MANIFEST.json"
    if done.returncode or not manifest.is_file():
        raise ArchiveError(f"torch-model-archiver failed: {done.stderr.strip()[-400:]}")
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["createdOn"] = CREATED_ON
    manifest.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def _zip(folder: Path) -> bytes:
    """The folder's files as a zip, sorted by name, each readable by all."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return reproducible_zip(((name, (folder / name).read_bytes()) for name in names), permissions=0o644)
