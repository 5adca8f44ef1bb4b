"""Quantises verified float32 artifacts to INT8 ones that pass a gate.

    result = quantize(load_recipe("digits_resnet18"), folder, max_drop=0.005)
    result.certificate["metrics"]        # {"accuracy": {"float32": 0.975, "int8": 0.975}}

It writes `main.int8.onnx`, `int8.json` and `quantization.json`. The certificate `int8.json` has no
times, so that the same choice has the same bytes. `quantization.json` says what was tried and how fast
it was.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchport.errors import QuantizationError, RecipeError
from torchport.model.certificate import binding, require_certificate
from torchport.model.exported import exported_backends
from torchport.model.int8_certificate import (
    CERTIFICATE,
    FORMAT,
    MEANING,
    int8_binding,
    int8_files,
    read_int8_certificate,
    stale_int8,
)
from torchport.optimize.quantize.candidates import Candidate, Workbench
from torchport.optimize.quantize.graphs import METHODS
from torchport.optimize.quantize.search import Outcome, search
from torchport.recipe.contract import Recipe
from torchport.recipe.gate import Gate
from torchport.store.files import read_json, write_bytes, write_json
from torchport.store.folders import BuildFolder
from torchport.store.versions import library_versions, record_head

REPORT = "quantization.json"


@dataclass(frozen=True)
class QuantizationResult:
    """Result of quantising a model.

    `done` is False if INT8 graphs of exactly these bytes and this gate existed already. `report` says
    what was tried. `certificate` is None if nothing passed; `refusal` says why.
    """

    done: bool
    certificate: dict[str, Any] | None
    report: dict[str, Any]
    why: str
    refusal: str = ""


def quantize(
    recipe: Recipe,
    folder: BuildFolder,
    *,
    max_drop: float,
    force: bool = False,
    tell: Callable[[str], None] = lambda message: None,
) -> QuantizationResult:
    """Make the fastest INT8 version whose held-out metrics pass the gate.

    They may be at most `max_drop` worse than float32's. If nothing passes, an earlier INT8 version is
    removed, because its gate may have been wider.

    Raises:
        StaleError: the float32 model has no passing certificate of parity.
        RecipeError: it has no ONNX export, no goals, no held-out examples, nothing to calibrate on.
        QuantizationError: nothing in it can be quantised, or a library is missing.
    """
    if "onnxruntime" not in exported_backends(recipe, folder):
        raise RecipeError(
            f"{recipe.path.name}: INT8 is made of the ONNX export, which is not among its backends"
        )
    gate = Gate.of(recipe.goals, max_drop)
    with folder.lock():
        bound = binding(recipe, folder)
        require_certificate(recipe, folder, bound)
        why = _why(recipe, folder, gate, bound)
        before, report = read_int8_certificate(folder), read_json(folder.path / REPORT)
        if why is None and before is not None and report is not None and not force:
            return QuantizationResult(
                False, before, report, "INT8 graphs of exactly these bytes and this gate"
            )
        with tempfile.TemporaryDirectory(prefix="torchport-quantize-") as work:
            tell("asking the float32 model")
            bench = Workbench(recipe, folder, gate, work=Path(work))
            outcome = search(bench, tell)
            report = _report(recipe, bench, gate, outcome)
            for name in (CERTIFICATE, *int8_files(recipe)):
                (folder.path / name).unlink(missing_ok=True)
            write_json(folder.path / REPORT, report)
            if outcome.best is None:
                return QuantizationResult(True, None, report, why or "asked for", outcome.why_none)
            for name, content in outcome.best.contents().items():
                write_bytes(folder.path / name, content)
            certificate = _certificate(recipe, bench, gate, outcome.best) | {
                "binding": int8_binding(recipe, folder, bound) | {"calibration": bench.calibration.sha256}
            }
            write_json(folder.path / CERTIFICATE, certificate)
        return QuantizationResult(True, certificate, report, why or "asked for")


def require(result: QuantizationResult) -> QuantizationResult:
    """Return the result, if it has an INT8 version.

    Raises:
        QuantizationError: nothing passed the gate, or nothing that did is faster than float32.
    """
    if result.certificate is None:
        raise QuantizationError(
            f"no INT8 version of this model: {result.refusal}; {REPORT} says what was tried"
        )
    return result


def _why(recipe: Recipe, folder: BuildFolder, gate: Gate, bound: Mapping[str, Any]) -> str | None:
    """Why the INT8 graphs cannot stay as they are; None if they can."""
    before = read_int8_certificate(folder)
    if before is None:
        return "not quantised yet"
    changed = stale_int8(recipe, folder, bound)
    if changed:
        return f"changed since: {', '.join(changed)}"
    if before["gate"] != gate.to_json():
        return "another gate"
    if before["libraries"] != _libraries():
        return "a library has changed"
    return None


def _libraries() -> dict[str, str]:
    return library_versions("onnxruntime", "onnx", "numpy", "pillow")


def _certificate(recipe: Recipe, bench: Workbench, gate: Gate, best: Candidate) -> dict[str, Any]:
    return {
        "format": FORMAT,
        **record_head(recipe.name, recipe.version),
        "says": MEANING,
        "method": best.method,
        "means": METHODS[best.method],
        "arithmetic": bench.arithmetic.to_json() | {"per_channel": True},
        "layers": len(bench.layers),
        "left_in_float32": ["/".join(layer) for layer in best.excluded],
        "gate": gate.to_json(),
        "metrics": {
            name: {"float32": value, "int8": best.metrics[name]}
            for name, value in bench.before.metrics.items()
        },
        "agreement": {"compared": best.agreement.compared, "agreed": best.agreement.agreed},
        "heldout_answers": len(bench.examples),
        "batch_size": recipe.serving.batch_size,
        "calibration_rows": dict(bench.calibration.rows),
        "libraries": _libraries(),
    }


def _report(recipe: Recipe, bench: Workbench, gate: Gate, outcome: Outcome) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "version": recipe.version,
        "gate": gate.to_json(),
        "batch_size": recipe.serving.batch_size,
        "threads": recipe.options.thread_count,
        "heldout_answers": len(bench.examples),
        "calibration_rows": dict(bench.calibration.rows),
        "held_out_rows_not_calibrated_on": bench.calibration.left_out,
        "layers": len(bench.layers),
        "float32": {"metrics": bench.before.metrics, "batch_ms": round(bench.batch_seconds * 1000, 3)},
        "tried": [
            {
                "method": c.method,
                "left_in_float32": ["/".join(layer) for layer in c.excluded],
                "metrics": c.metrics,
                "compared": c.agreement.compared,
                "agreed": c.agreement.agreed,
                "bytes": c.size,
                "speed": round(c.speed, 3),
                "rounds": "few" if c.quick else "all",
                "problems": c.problems,
                "chosen": c is outcome.best,
            }
            for c in outcome.tried
        ],
        "impossible": outcome.impossible,
    }
