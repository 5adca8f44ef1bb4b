"""`tuning.json` in a build folder: what was measured on which machine, and the configuration that was chosen,
bound by SHA-256 to what the certificate is bound to.

    tuned = tuning_of(recipe, folder)
    tuned.configuration                  # what `package` puts into model-config.yaml; None without a tuning
    tuned.why_not                        # why one that is there is left out, such as what has changed since
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torchport.certificate import binding, differences
from torchport.configuration import Configuration
from torchport.errors import BackendError
from torchport.hashing import sha256_file
from torchport.int8_certificate import CERTIFICATE as INT8_CERTIFICATE
from torchport.recipe import Recipe
from torchport.store import BuildFolder, read_json

FORMAT = 1
RECORD, PICTURE, REPORT = "tuning.json", "tuning.svg", "tuning.html"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The configuration to package, where there is one; why not, where there is one that does not apply."""

    configuration: Configuration | None = None
    why_not: str = ""


def tuning_binding(recipe: Recipe, folder: BuildFolder, configuration: Configuration) -> dict[str, Any]:
    """The digests that a tuning to this configuration must carry.

    Raises:
        StaleError: not trained or not exported, or an artifact is not what was exported.
    """
    bound = binding(recipe, folder)
    int8 = folder.path / INT8_CERTIFICATE
    if configuration.precision == "int8" and int8.is_file():
        bound |= {"int8": {INT8_CERTIFICATE: sha256_file(int8)}}
    return bound


def read_tuning(folder: BuildFolder) -> dict[str, Any] | None:
    """What is in a build folder; None where there is nothing, or it is damaged."""
    return read_json(folder.path / RECORD, "binding", "chosen", "asked", "machine", "cores")


def tuning_of(
    recipe: Recipe, folder: BuildFolder, *, backends: Sequence[str] = (), precision: str | None = None
) -> Tuning:
    """The tuning of what is in the folder now; with `backends` (the first to serve) and `precision`, where
    they are given, only one that has these.

    Raises:
        StaleError: as `tuning_binding`.
    """
    record = read_tuning(folder)
    if record is None:
        return Tuning(why_not="it cannot be read" if (folder.path / RECORD).exists() else "")
    try:
        chosen = Configuration(**record["chosen"])
        chosen.model_config(recipe)
    except (TypeError, ValueError, BackendError) as err:
        return Tuning(why_not=f"what it has chosen cannot be: {err}")
    changed = differences(record["binding"], tuning_binding(recipe, folder, chosen))
    if changed:
        return Tuning(why_not=f"since it was measured these have changed: {', '.join(changed)}")
    if backends and backends[0] != chosen.backend:
        return Tuning(why_not=f"it is of {chosen.backend}, and {backends[0]} is to serve")
    if precision is not None and precision != chosen.precision:
        return Tuning(why_not=f"it is of {chosen.precision}, and {precision} is asked for")
    return Tuning(configuration=chosen)
