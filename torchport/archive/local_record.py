"""Checks that an archive was verified on this machine.

The record of `torchport verify --store DIR` is compared with the machine, its libraries and the archive
as they are now:

    require_local_parity(store.archive("linear", "1.0"), "onnxruntime", device="cpu")

A record is not signed: it keeps out archives that were not verified here by mistake. Anyone with write
access to the store could write a record, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchport.errors import ArchiveError
from torchport.store import machine
from torchport.store.files import read_json
from torchport.store.hashing import sha256_file
from torchport.store.variants import Variant
from torchport.store.versions import library_versions
from torchport.version import __version__
from torchport_runtime.backends.cuda import device_index

FOLDER = ".local_parity"
"""The records' folder in a store. It is hidden: TorchServe takes any visible folder of a store for a
model."""

LIBRARIES = {
    # Of ONNX Runtime's two distributions only one knows GPUs.
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "numpy", "pillow"),
    "torchscript": ("torch", "numpy", "pillow"),
    "pt2": ("torch", "numpy", "pillow"),
    "aotinductor": ("torch", "numpy", "pillow"),
}
"""Distributions that compute an answer, by backend; the first is the backend itself."""

AGAIN = "torchport verify --store DIR, on this machine"

_KEYS = (
    *("torchport", "archive_sha256", "machine", "libraries"),
    *("not_installed", "without_gpu", "passed", "results"),
)
_NO_RECORD = (AttributeError, KeyError, TypeError)
"""Exceptions that mean that a record is malformed."""


def record_path(archive: Path) -> Path:
    """The file of an archive's record on this machine."""
    return archive.parent / FOLDER / f"{archive.name.removesuffix('.mar')}.json"


def read_record(archive: Path) -> dict[str, Any] | None:
    """The record of an archive; None if missing or damaged.

    Raises:
        ArchiveError: it cannot be read, or it is no file.
    """
    path = record_path(archive)
    if path.exists() and not path.is_file():
        raise ArchiveError(f"{path} is no file: remove it, then {AGAIN}")
    try:
        return read_json(path, *_KEYS)
    except OSError as err:
        raise ArchiveError(f"cannot read {path}: {err.strerror or err}") from err


def devices_of(gpus: Sequence[str]) -> list[str]:
    """The GPUs to verify archives on: the first of each name.

    `gpus` are the names of all GPUs.
    """
    return [_device(gpus.index(name)) for name in dict.fromkeys(gpus)]


def still_holds(
    record: Mapping[str, Any], digest: str, libraries: Mapping[str, Any], variants: Sequence[Variant]
) -> bool:
    """Whether a record is current and complete, and everything in it passed.

    It must be of this archive's SHA-256, this machine, these libraries and all these variants.
    """
    try:
        return (
            not _changes(record, digest)
            and record["libraries"] == libraries
            and record["passed"] is True
            and not any(map(_why_no_pass, record["results"]))
            and not any(_missing(record, variant, "auto") for variant in variants)
        )
    except _NO_RECORD:
        return False


def require_local_parity(
    archive: Path, backend: str, precision: str = "float32", device: str = "auto"
) -> None:
    """Compare an archive's record with this machine, these libraries and these bytes.

    The record must cover the devices that the option `device` can select. With `auto` these are the CPU
    and the GPUs that the backend can use.

    Raises:
        ArchiveError: no record, it did not pass, or something has changed since.
    """
    record = read_record(archive)
    if record is None:
        raise ArchiveError(f"{archive.name} has not been proven on this machine: {AGAIN}")
    try:
        _compare(archive, Variant(backend, precision), device, record)
    except _NO_RECORD as err:
        path = record_path(archive)
        raise ArchiveError(f"{path.parent.name}/{path.name} is damaged ({err!r}): {AGAIN}") from err


def _compare(archive: Path, variant: Variant, device: str, record: Mapping[str, Any]) -> None:
    changed = _changes(record, sha256_file(archive))
    own = [result for result in record["results"] if Variant.of(result) == variant]
    if not changed and not own:
        why = "was not run" if str(variant) not in record["not_installed"] else "was not installed then"
        run = ", ".join(sorted({str(Variant.of(result)) for result in record["results"]})) or "nothing"
        raise ArchiveError(f"{archive.name}: the backend {variant} {why}; proven here was {run}: {AGAIN}")
    if own:
        before = record["libraries"].get(variant.backend, {})
        now = library_versions(*LIBRARIES[variant.backend])
        changed += [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        raise ArchiveError(f"{archive.name}: since it was proven, {', '.join(changed)} changed: {AGAIN}")
    # What is to serve first: its reason is the one to read. All have to have passed, though.
    reasons = [_why_no_pass(result) for result in (*own, *record["results"])]
    reasons += [] if record["passed"] is True else ["the record says so"]
    reason = next((reason for reason in reasons if reason), "")
    if reason:
        raise ArchiveError(f"{archive.name} did not pass on this machine: {reason}")
    missing = _missing(record, variant, device)
    if missing:
        raise ArchiveError(
            f"{archive.name}: {variant} was not proven on {' or '.join(missing)}, which device {device!r} "
            f"may come to here: {AGAIN}"
        )


def _changes(record: Mapping[str, Any], digest: str) -> list[str]:
    """What has changed since the record: the archive, torchport, the machine."""
    changed = [] if record["archive_sha256"] == digest else ["the archive"]
    changed += [] if record["torchport"] == __version__ else ["torchport"]
    before, now = record["machine"], machine.describe()
    return changed + [f"the machine's {key}" for key in now if before.get(key) != now[key]]


def _why_no_pass(result: Mapping[str, Any]) -> str:
    """Why a result of a record did not pass; empty if it did."""
    failures, cases, worst = result["failures"], result["cases"], result["worst_error_to_bound"]
    if not isinstance(failures, list) or type(cases) is not int:
        raise TypeError(f"failures {str(failures)[:100]!r}, cases {str(cases)[:100]!r}")
    where = f"{Variant.of(result)} on {result['device']}"
    if failures:
        return str(failures[0])
    if result["passed"] is not True:
        return f"{where}: the record says so"
    if cases < 1:
        return f"{where}: nothing was compared"
    if type(worst) not in (int, float) or not 0 <= worst <= 1:
        return f"{where}: the worst error is {str(worst)[:100]} of its bound"
    return ""


def _missing(record: Mapping[str, Any], variant: Variant, device: str) -> list[str]:
    """Devices without a result that a variant must be verified on."""
    there = [result["device"] for result in record["results"] if Variant.of(result) == variant]
    return [needed for needed in _needed(record, variant, device) if needed not in there]


def _needed(record: Mapping[str, Any], variant: Variant, device: str) -> list[str]:
    """Devices that a variant must be verified on for a `device` option.

    A server spreads the workers of plain `cuda` and of `auto` over all GPUs.
    """
    if device == "cpu" or not variant.takes_gpu:
        return ["cpu"]
    gpus = machine.gpus()
    if device not in ("auto", "cuda"):
        index = device_index(device)
        return [_device(gpus.index(gpus[index]))] if index < len(gpus) else [device]
    if device == "cuda":
        return devices_of(gpus) or ["cuda"]
    without = [Variant.of(entry) for entry in record["without_gpu"]]
    return ["cpu", *(devices_of(gpus) if variant not in without else [])]


def _device(index: int) -> str:
    return f"cuda:{index}" if index else "cuda"
