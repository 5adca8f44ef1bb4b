"""`tuning.json`: the configuration that `torchport tune` chose, bound by SHA-256.

    tuned = tuning_of(recipe, folder)
    tuned.configuration                  # what `package` puts into model-config.yaml; None without a tuning
    tuned.why_not                        # why an existing tuning is not used, such as what has changed since

It is in a build folder, and says what was measured on which machine. It is bound to what the
certificate is bound to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchport.errors import BackendError
from torchport.model.certificate import binding, differences
from torchport.model.int8_certificate import CERTIFICATE as INT8_CERTIFICATE
from torchport.package.configuration import BATCH_SIZES, Configuration
from torchport.recipe.contract import Recipe
from torchport.store.files import read_json
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_file
from torchport_runtime.options import MOST_THREADS

FORMAT = 1
RECORD, PICTURE, REPORT = "tuning.json", "tuning.svg", "tuning.html"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The tuned configuration to package, or why a tuning does not apply.

    Both are empty without a tuning.
    """

    configuration: Configuration | None = None
    why_not: str = ""


def tuning_binding(
    recipe: Recipe,
    folder: BuildFolder,
    configuration: Configuration,
    bound: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The digests that a tuning to this configuration must carry.

    `bound` is the folder's `binding`, where a stage has made it under the same lock.

    Raises:
        StaleError: not trained or not exported, or an artifact is not what was exported.
    """
    bound = dict(binding(recipe, folder) if bound is None else bound)
    int8 = folder.path / INT8_CERTIFICATE
    if configuration.precision == "int8" and int8.is_file():
        bound |= {"int8": {INT8_CERTIFICATE: sha256_file(int8)}}
    return bound


def read_tuning(folder: BuildFolder) -> dict[str, Any] | None:
    """The tuning record of a build folder; None if missing or damaged."""
    record = read_json(folder.path / RECORD, "binding", "chosen", "asked", "machine", "cores")
    whole = record is not None and all(isinstance(record[name], dict) for name in ("binding", "chosen"))
    return record if whole else None


def tuning_of(
    recipe: Recipe,
    folder: BuildFolder,
    *,
    backends: Sequence[str] = (),
    precision: str | None = None,
    bound: Mapping[str, Any] | None = None,
) -> Tuning:
    """The tuning of what is in the folder now.

    With `backends` (the first serves) or `precision`, only a tuning to these counts. `bound` is as in
    `tuning_binding`.

    Raises:
        StaleError: as `tuning_binding`.
    """
    record = read_tuning(folder)
    if record is None:
        return Tuning(why_not="it cannot be read" if (folder.path / RECORD).exists() else "")
    try:
        chosen = Configuration(**record["chosen"])
        chosen.model_config(recipe)
        _require_measurable(recipe, chosen, record["cores"])
    except (TypeError, ValueError, BackendError) as err:
        return Tuning(why_not=f"what it has chosen cannot be: {err}")
    changed = differences(record["binding"], tuning_binding(recipe, folder, chosen, bound))
    if changed:
        return Tuning(why_not=f"since it was measured these have changed: {', '.join(changed)}")
    if backends and backends[0] != chosen.backend:
        return Tuning(why_not=f"it is of {chosen.backend}, and {backends[0]} is to serve")
    if chosen.backend not in (backends or recipe.ships):
        return Tuning(why_not=f"it is of {chosen.backend}, which the archive does not carry")
    if precision is not None and precision != chosen.precision:
        return Tuning(why_not=f"it is of {chosen.precision}, and {precision} is asked for")
    return Tuning(configuration=chosen)


def _require_measurable(recipe: Recipe, chosen: Configuration, cores: Any) -> None:
    """Check that a choice is within what is measured on `cores` cores.

    Raises:
        ValueError: a number that is not.
    """
    if type(cores) is not int or not 1 <= cores <= MOST_THREADS:
        raise ValueError(f"cores {str(cores)[:100]}: 1 to {MOST_THREADS} is expected")
    default = Configuration.default_of(recipe)
    for name, measured in (("threads", cores), ("workers", cores), ("batch_size", max(BATCH_SIZES))):
        value, most = getattr(chosen, name), max(measured, getattr(default, name))
        if type(value) is not int or value > most:
            raise ValueError(f"{name} {str(value)[:100]}: at most {most} is measured on {cores} cores")
