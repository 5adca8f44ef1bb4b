"""Binds a certificate to the SHA-256 of all that can change answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchport_runtime
from torchport.errors import StaleError
from torchport.model.exported import exported_variants
from torchport.model.trained import require_training
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import find_handler
from torchport.recipe.variants import variant_options
from torchport.store.files import read_json
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_bytes, sha256_file, sha256_json, sha256_tree

FORMAT = 1
RULES = 4
"""Version of the checks. Increase it when checks are added: `verify` then repeats older certificates."""
REQUIREMENTS = "requirements.txt"
"""An archive's file of packages that its handler needs next to the runtime. TorchServe's archiver gives it
this name."""


def runtime_folder() -> Path:
    return Path(torchport_runtime.__file__).parent


def runtime_digest(folder: Path) -> str:
    """One SHA-256 for a copy of `torchport_runtime`."""
    return sha256_json(sha256_tree(folder))


def binding(recipe: Recipe, folder: BuildFolder) -> dict[str, Any]:
    """The digests that a certificate of this build folder must contain.

    Raises:
        StaleError: not trained or not exported, or an artifact is not what was exported.
    """
    artifacts = folder.require_artifacts()
    training = require_training(recipe, folder)
    signatures = {"graphs": {name: s.to_json() for name, s in recipe.signatures().items()}}
    if read_json(folder.signature) != json.loads(json.dumps(signatures)):
        raise StaleError(
            f"{folder.name} {folder.version}: signature.json is not the recipe's signature: "
            f"torchport export {folder.name} --force"
        )
    handler = find_handler(recipe)
    return {
        "weights.pt": training["weights_sha256"],
        "recipe": dict(recipe.sources),
        "artifacts": artifacts,
        "handler": {handler.name: sha256_file(handler)},
        "handler_options": sha256_json(dict(recipe.handler_options)),
        "runtime": runtime_digest(runtime_folder()),
        "assets": training["assets"],
        "options": {str(v): variant_options(recipe, v).numerics() for v in exported_variants(recipe, folder)},
        "requirements": {REQUIREMENTS: sha256_bytes(requirements(recipe))} if recipe.requirements else {},
    }


def requirements(recipe: Recipe) -> bytes:
    """The archive's requirements.txt."""
    return "".join(f"{line}\n" for line in recipe.requirements).encode()


def require_certificate(
    recipe: Recipe, folder: BuildFolder, bound: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The passing certificate of exactly what is in the folder now.

    `bound` is the folder's `binding`, where a stage has made it under the same lock.

    Raises:
        StaleError: the certificate is missing, it did not pass, or something it is bound to has changed; the
            message names each.
    """
    again = f"torchport verify {folder.name}"
    bound = binding(recipe, folder) if bound is None else bound
    certificate = folder.certificate()
    if certificate is None:
        raise StaleError(f"{folder.name} {folder.version} has no certificate: {again}")
    if not certificate.get("passed"):
        first = (certificate.get("failures") or ["no reason recorded"])[0]
        raise StaleError(f"{folder.name} {folder.version} did not pass parity: {first}")
    if not has_evidence(folder, certificate):
        raise StaleError(f"{folder.name} {folder.version}: the certificate's evidence is not there: {again}")
    changed = differences(certificate.get("binding", {}), bound)
    if changed:
        raise StaleError(
            f"{folder.name} {folder.version}: the certificate is not of these bytes; since it was made "
            f"these have changed: {', '.join(changed)}: {again}"
        )
    return certificate


def has_evidence(folder: BuildFolder, certificate: dict[str, Any]) -> bool:
    """Whether the test vectors that a certificate names are there, unchanged."""
    named = certificate.get("evidence", {})
    return bool(named) and all(
        (folder.path / name).is_file() and sha256_file(folder.path / name) == digest
        for name, digest in named.items()
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what differs between two bindings, files by their own names."""
    changed = []
    for key in sorted(set(before) | set(now)):
        was, is_ = before.get(key), now.get(key)
        if was == is_:
            continue
        if isinstance(was, dict) and isinstance(is_, dict):
            changed += [name for name in sorted(set(was) | set(is_)) if was.get(name) != is_.get(name)]
        else:
            changed.append(key)
    return changed
