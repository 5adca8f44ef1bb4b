"""Decides whether an archive may be served here.

Checked are its hashes, its certificate, and its options with this process's environment. This happens
before a worker starts, which could only fail again and again.
"""

from __future__ import annotations

import os

from torchport.archive.contents import ArchiveContents
from torchport.errors import BackendError
from torchport.server.errors import ArchiveRefused
from torchport.server.settings.settings import ServerSettings
from torchport.store.serving_record import records_beside
from torchport.store.variants import Variant
from torchport_runtime.options import BackendOptions


def require_trusted(contents: ArchiveContents, settings: ServerSettings) -> bool:
    """Refuse an untrusted archive; return whether it has a certificate.

    With a certificate, all hashes of the archive have been checked.

    Raises:
        ArchiveRefused: a hash is wrong; the certificate is missing, and the settings demand it; the
            archive does not contain the backend or precision that it would be served with; the settings
            demand a re-verification on this machine, which does not cover these options; or they demand
            that the recipe's goals are met, and no check has shown it.
        ArchiveError: this machine has no valid record of re-verifying the archive.
    """
    name = contents.path.name
    if not contents.certificate:
        for demand in ("require_certificate", "require_local_parity", "require_goals"):
            if getattr(settings, demand):
                raise ArchiveRefused(f"{name}: no parity.json, and {demand}=true: make it with torchport")
        return False
    if contents.problems:
        raise ArchiveRefused(f"{name}: {'; '.join(contents.problems)}: package it again")
    block = contents.config.get("torchport") or {}
    try:
        own, options = BackendOptions.from_config(block), BackendOptions.from_config(block, os.environ)
    except BackendError as err:
        raise ArchiveRefused(f"{name}: {err}") from err
    _require_carried(contents, options)
    if settings.require_local_parity:
        from torchport.archive.local_record import require_local_parity

        _require_provable(name, own, options)
        require_local_parity(contents.path, options.backend, options.precision, options.device)
    if settings.require_goals:
        _require_goals(contents, options)
    return True


def _require_goals(contents: ArchiveContents, options: BackendOptions) -> None:
    """Refuse an archive whose checks, with what is to serve, missed a goal or have not been made."""
    name, variant = contents.path.name, Variant(options.backend, options.precision)
    records = [
        record
        for record in records_beside(contents.path, contents.name, contents.version)
        if (record.get("backend"), record.get("precision", "float32")) == (variant.backend, variant.precision)
    ]
    # No goals are none missed; a record that says nothing of goals shows nothing.
    judged = [record for record in records if isinstance(record.get("missed"), list)]
    missed = [str(goal) for record in judged for goal in record["missed"]]
    if missed:
        raise ArchiveRefused(f"{name}: require_goals=true, and it missed its goals: {'; '.join(missed)}")
    if not judged or not all(record["passed"] for record in judged):
        raise ArchiveRefused(
            f"{name}: require_goals=true, and no check of {variant} in this store has shown that it meets "
            f"its goals: torchport check {contents.name}"
        )


def _require_carried(contents: ArchiveContents, options: BackendOptions) -> None:
    carried = contents.variants
    if contents.int8_certificate:
        carried.append(Variant("onnxruntime", "int8"))
    asked = Variant(options.backend, options.precision)
    if asked not in carried:
        raise ArchiveRefused(
            f"{contents.path.name}: it does not carry {asked} (TORCHPORT_BACKEND, TORCHPORT_PRECISION or "
            f"its own options), but {', '.join(map(str, carried)) or 'nothing'}"
        )


def _require_provable(name: str, own: BackendOptions, options: BackendOptions) -> None:
    if options.precision == "int8":
        raise ArchiveRefused(
            f"{name}: require_local_parity=true, but what an archive is proven by again says nothing of the "
            f"precision {options.precision}: serve it in float32"
        )
    if options.tensorrt != own.tensorrt:
        raise ArchiveRefused(
            f"{name}: require_local_parity=true, and TORCHPORT_TENSORRT says otherwise than the archive, of "
            "which alone something was proven: unset it"
        )
