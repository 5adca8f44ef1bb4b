"""Finds the fastest configuration of a verified model on this machine, for `package`.

    result = tune(load_recipe("digits_resnet18"), store, slo=Slo.parse(["p99=50ms"]), budget_s=300)
    result.record["chosen"]              # {"backend": "onnxruntime", "threads": 1, "workers": 2, ...}

Writes `tuning.json`, `tuning.svg` and `tuning.html` into the build folder; `package` does the rest.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torchport.errors import StaleError, TuningError, TuningRequestError
from torchport.model.certificate import differences
from torchport.optimize.tune.candidates import Space, candidates
from torchport.optimize.tune.measuring import Bench
from torchport.optimize.tune.report import page, picture
from torchport.optimize.tune.search import EFFORT, Effort, Outcome, Point, Serve, search
from torchport.optimize.tune.slo import Slo
from torchport.package.configuration import Configuration
from torchport.package.packaging import archive_content, require_exported
from torchport.package.tuning_record import (
    FORMAT,
    PICTURE,
    RECORD,
    REPORT,
    read_tuning,
    tuning_binding,
    tuning_of,
)
from torchport.recipe.contract import Recipe
from torchport.store import machine
from torchport.store.files import write_bytes, write_json
from torchport.store.folders import BuildFolder, Store
from torchport.store.versions import library_versions, record_head
from torchport_runtime.options import OVERRIDABLE

MEANING = (
    "client and server shared this machine's cores: the figures compare these configurations with each "
    "other, in the same run, and are no absolute ones"
)
OVERRIDES = tuple(f"TORCHPORT_{key.upper()}" for key in OVERRIDABLE)


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """Result of `torchport tune`: its record, and whether it was measured anew.

    `record` is the content of `tuning.json`, and empty if nothing meets the SLO. If `done` is False, it is
    the record of an earlier run, and `outcome` is None. `why` gives the reason.
    """

    done: bool
    why: str
    record: dict[str, Any]
    outcome: Outcome | None = None


def tune(
    recipe: Recipe,
    store: Store,
    *,
    slo: Slo,
    budget_s: float,
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    allow_int8: bool = False,
    effort: Effort = EFFORT,
    force: bool = False,
    serve: Serve | None = None,
    tell: Callable[[str], None] = lambda message: None,
) -> TuneResult:
    """Measure within `budget_s` seconds, choose a configuration and record it.

    With `require`, an empty choice is an error.

    `serve` starts a configuration to be measured: a real server on this machine unless given.

    Raises:
        StaleError: no passing certificate of what is in the build folder, or it changed meanwhile.
        TuningRequestError: nothing proven is left of what was asked for, or the environment overrides
            what is to be measured.
        ServerError: the default configuration cannot be served.
    """
    begun = time.monotonic()
    _refuse_overrides()
    folder = store.build(recipe.name, recipe.version)
    with folder.lock():
        space = candidates(recipe, folder, backends=backends, precisions=precisions, allow_int8=allow_int8)
        asked = {
            "slo": str(slo),
            "backends": sorted(backends),
            "precisions": sorted(precisions),
            "int8": any(precision == "int8" for _, precision in space.choosable),
        }
        why = _why(recipe, folder, asked, space)
        before = read_tuning(folder)
        if before is not None and not why and not force:
            return TuneResult(done=False, why="measured on this machine before", record=before)
        require_exported(recipe, folder, recipe.ships)
        bound = _bindings(recipe, folder, space)
        config = space.default.model_config(recipe)
        content = archive_content(recipe, folder, tuple(recipe.ships), config, space.binding)
    with ExitStack() as opened:
        start = serve or opened.enter_context(Bench(recipe, content)).serve
        outcome = search(space, slo, start, deadline=begun + budget_s, effort=effort, tell=tell)
    record = {}
    if outcome.chosen is not None:
        seconds = round(time.monotonic() - begun, 1)
        record = _record(recipe, outcome, outcome.chosen, asked, seconds)
        record["binding"] = bound[outcome.chosen.precision]
        _write(recipe, folder, outcome, outcome.chosen, record)
    return TuneResult(done=True, why=why or "asked for", record=record, outcome=outcome)


def _refuse_overrides() -> None:
    """Refuse environment variables that win over what is measured.

    Raises:
        TuningRequestError: one is set.
    """
    overriding = [name for name in OVERRIDES if os.environ.get(name)]
    if overriding:
        raise TuningRequestError(
            f"{', '.join(overriding)} in the environment: it wins over what is measured: unset it"
        )


def _write(
    recipe: Recipe, folder: BuildFolder, outcome: Outcome, chosen: Configuration, record: dict[str, Any]
) -> None:
    """Write the record, the picture and the page, if the measured files are unchanged.

    Raises:
        StaleError: something in the build folder has changed meanwhile.
    """
    with folder.lock():
        changed = differences(record["binding"], tuning_binding(recipe, folder, chosen))
        if changed:
            raise StaleError(
                f"{recipe.name} {recipe.version}: while it was measured these changed: {', '.join(changed)}; "
                f"nothing was written: torchport tune {recipe.name}"
            )
        drawn = picture(outcome)
        write_bytes(folder.path / PICTURE, drawn.encode())
        write_bytes(folder.path / REPORT, page(record, drawn).encode())
        write_json(folder.path / RECORD, record)


def reset(recipe: Recipe, store: Store) -> bool:
    """Remove a tuning; whether there was one."""
    folder = store.build(recipe.name, recipe.version)
    with folder.lock():
        there = [path for name in (RECORD, PICTURE, REPORT) if (path := folder.path / name).exists()]
        for path in there:
            path.unlink()
    return bool(there)


def require(result: TuneResult) -> TuneResult:
    """The result, or why nothing was chosen as an error.

    Raises:
        TuningError: nothing that was measured is within the SLO.
    """
    outcome = result.outcome
    if outcome is None or outcome.chosen is not None:
        return result
    nearest = min(outcome.points, key=lambda p: outcome.slo.miss(p.measured))
    measured = nearest.measured
    figures = ", ".join(f"{name} {value:.3g} ms" for name, value in measured.latency_ms.items())
    raise TuningError(
        f"nothing that may be chosen gives what is asked for ({outcome.slo}); nearest: "
        f"{nearest.configuration}, {nearest.connections} connections: {measured.per_second:.0f}/s, {figures}"
        f"{f', {measured.errors} failed: {measured.reason}' if measured.errors else ''}; nothing was changed"
    )


def _bindings(recipe: Recipe, folder: BuildFolder, space: Space) -> dict[str, dict[str, Any]]:
    """What a tuning to each precision is bound to."""
    configurations = {c.precision: c for c in [*space.shapes, space.default]}
    return {name: tuning_binding(recipe, folder, c, space.binding) for name, c in configurations.items()}


def _why(recipe: Recipe, folder: BuildFolder, asked: dict[str, Any], space: Space) -> str:
    """Why it is measured again; empty where what is there will do."""
    record = read_tuning(folder)
    if record is None:
        return "not tuned yet"
    tuning = tuning_of(recipe, folder, bound=space.binding)
    if tuning.configuration is None:
        return tuning.why_not
    if record["asked"] != asked:
        return "something else is asked for"
    if record["machine"] != machine.describe() or record["cores"] != space.cores:
        return "another machine"
    if record.get("libraries") != _libraries():
        return "a library has changed"
    return ""


def _libraries() -> dict[str, str]:
    return library_versions("onnxruntime", "torch", "numpy", "pillow", "uvloop")


def _record(
    recipe: Recipe, outcome: Outcome, chosen: Configuration, asked: dict[str, Any], seconds: float
) -> dict[str, Any]:
    front = outcome.front()
    return {
        "format": FORMAT,
        **record_head(recipe.name, recipe.version),
        "says": MEANING,
        "machine": machine.describe(),
        "cores": outcome.space.cores,
        "libraries": _libraries(),
        "asked": asked,
        "seconds": seconds,
        "default": outcome.space.default.to_json(),
        "chosen": chosen.to_json(),
        "why": outcome.why,
        "speed": round(outcome.speed, 3),
        "points": [_point(p) | {"front": p in front} for p in outcome.points],
        "refused": dict(outcome.space.refused),
        "failed": outcome.failed,
        "skipped": [str(c) for c in outcome.skipped],
    }


def _point(point: Point) -> dict[str, Any]:
    measured = point.measured
    return {
        **point.configuration.to_json(),
        "connections": point.connections,
        "rounds": len(point.rounds),
        "per_second": round(measured.per_second, 2),
        # JSON has no word for what is infinite, where nothing was answered.
        "latency_ms": {
            name: round(value, 3) if math.isfinite(value) else None
            for name, value in measured.latency_ms.items()
        },
        "answers": measured.answers,
        "errors": measured.errors,
    }
