"""`int8.json`: quality of a model's INT8 version, bound by SHA-256 to its files.

It is no certificate of parity, which says how close numbers are. It says what clients see: how much the
held-out metrics changed, and how many answers decide as the float32 model's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchport.errors import StaleError
from torchport.model.certificate import binding, differences
from torchport.recipe.contract import Recipe
from torchport.recipe.variants import INT8, variant_options
from torchport.store.files import read_json
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_file
from torchport_runtime.options import INT8_SUFFIX

FORMAT = 1
CERTIFICATE = "int8.json"
MEANING = (
    "agreement and metric, not closeness: the numbers of this INT8 version differ from the float32 model's "
    "by more than rounding; what was held to a gate are the metrics of the answers to held-out examples"
)


def int8_files(recipe: Recipe) -> list[str]:
    """The file names of a model's INT8 graphs."""
    return [f"{graph}{INT8_SUFFIX}" for graph in recipe.signatures()]


def int8_binding(
    recipe: Recipe, folder: BuildFolder, bound: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Digests that a certificate of the folder's present content must carry.

    The calibration's digest is not among them.

    `bound` is the folder's `binding`, where a stage has made it under the same lock.

    Raises:
        StaleError: the float32 model is not trained or exported, or an artifact is not what was exported.
    """
    bound = binding(recipe, folder) if bound is None else bound
    floats = {f"{graph}.onnx" for graph in recipe.signatures()}
    return {
        **bound,
        "artifacts": {name: digest for name, digest in bound["artifacts"].items() if name in floats},
        "int8": {
            name: sha256_file(folder.path / name)
            for name in int8_files(recipe)
            if (folder.path / name).is_file()
        },
        "options": variant_options(recipe, INT8, "cpu").numerics(),
    }


def read_int8_certificate(folder: BuildFolder) -> dict[str, Any] | None:
    """The INT8 certificate in a build folder; None if missing or damaged."""
    return read_json(folder.path / CERTIFICATE, "binding", "gate", "metrics", "agreement", "method")


def stale_int8(recipe: Recipe, folder: BuildFolder, bound: Mapping[str, Any] | None = None) -> list[str]:
    """Names of what has changed since the certificate was made; empty if nothing has.

    Raises:
        StaleError: as `int8_binding`.
    """
    certificate = read_int8_certificate(folder) or {"binding": {}}
    before = {name: value for name, value in certificate["binding"].items() if name != "calibration"}
    return differences(before, int8_binding(recipe, folder, bound))


def require_int8(
    recipe: Recipe, folder: BuildFolder, bound: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The INT8 certificate, if it is bound to exactly the folder's content.

    Raises:
        StaleError: the certificate is missing, or something it is bound to has changed; the message names it.
    """
    again = f"torchport quantize {folder.name}"
    certificate = read_int8_certificate(folder)
    if certificate is None:
        raise StaleError(f"{folder.name} {folder.version} has no INT8 version: {again}")
    changed = stale_int8(recipe, folder, bound)
    if changed:
        raise StaleError(
            f"{folder.name} {folder.version}: {CERTIFICATE} is not of these bytes; since it was made "
            f"these have changed: {', '.join(changed)}: {again} (or remove {CERTIFICATE} to go without INT8)"
        )
    return certificate
