"""INT8 beside float32: throughput and metric of models that `torchport quantize` has made INT8.

    torchport train digits_resnet18 --image-size 224 --epochs 2 --store .cache/store224
    torchport export digits_resnet18 --store .cache/store224    # and verify, quantize
    python -m bench.int8 .cache/store224:digits_resnet18 digits_vgg11 digits_detector sentiment

For each model (STORE:NAME where it lies elsewhere than in model_store) ONNX Runtime runs both precisions on
the same held-out inputs, 8 rows together, in turns: what is printed are the medians. Nothing but the model
is timed: no decoding, no answer, no server. Metrics are those of `int8.json`; of a model that was refused,
the candidate that came nearest is shown as it was measured by the search.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from torchport.model.int8_certificate import require_int8
from torchport.optimize.quantize.heldout import HeldOut, interleaved_seconds
from torchport.optimize.quantize.quantizing import REPORT
from torchport.recipe.contract import Recipe
from torchport.recipe.handler import handler_class
from torchport.recipe.loading import find_handler, load_recipe
from torchport.recipe.variants import INT8, backend_options, variant_options
from torchport.store.folders import BuildFolder, Store
from torchport.store.machine import processor
from torchport_runtime import BackendOptions, Handler

BATCH_SIZE, ROUNDS = 8, 40


def made_as(name: str, store: Store) -> tuple[Recipe, BuildFolder]:
    """The recipe of a model in the store, with the parameters that it was trained with."""
    record = store.build(name, store.built_versions(name)[-1]).training_record() or {}
    recipe = load_recipe(name, record["parameters"])
    return recipe, store.build(recipe.name, recipe.version)


def opened(recipe: Recipe, folder: BuildFolder, options: BackendOptions) -> Handler:
    handler = handler_class(find_handler(recipe))()
    handler.load(folder.path, options, dict(recipe.handler_options))
    return handler


def measured(recipe: Recipe, folder: BuildFolder) -> tuple[float, float]:
    """Milliseconds of a batch in float32 and in INT8, medians of turns."""
    handlers = {
        "float32": opened(recipe, folder, backend_options(recipe, "onnxruntime", "cpu")),
        "int8": opened(recipe, folder, variant_options(recipe, INT8, "cpu")),
    }
    batches = HeldOut(recipe, batch_size=BATCH_SIZE).batches(handlers["float32"])
    taken = interleaved_seconds(handlers, batches, rounds=ROUNDS, at_least=4.0)
    return taken["float32"] * 1000 / len(batches), taken["int8"] * 1000 / len(batches)


def shape(recipe: Recipe) -> str:
    (spec, *_) = next(iter(recipe.signatures().values())).inputs.values()
    return "x".join(str(size) for size in spec.shape[1:])


def row(recipe: Recipe, folder: BuildFolder) -> list[str]:
    """One line of the table."""
    report: dict[str, Any] = json.loads((folder.path / REPORT).read_text(encoding="utf-8"))
    chosen = [tried for tried in report["tried"] if tried["chosen"]]
    if not chosen:
        asked = [tried for tried in report["tried"] if tried["metrics"]]
        nearest = max(asked, key=lambda tried: (not tried["problems"], tried["speed"]))
        metrics = [
            f"{n} {v:.4f} -> {nearest['metrics'][n]:.4f}" for n, v in report["float32"]["metrics"].items()
        ]
        why = "; ".join(nearest["problems"]) or f"{nearest['speed']:.2f} times float32's throughput"
        return [
            recipe.name,
            shape(recipe),
            "-",
            "-",
            f"{nearest['speed']:.2f}",
            ", ".join(metrics),
            f"refused: {why}",
        ]
    certificate = require_int8(recipe, folder)
    before, after = measured(recipe, folder)
    metrics = [f"{n} {v['float32']:.4f} -> {v['int8']:.4f}" for n, v in certificate["metrics"].items()]
    rows = [f"{BATCH_SIZE * 1000 / ms:.1f}" for ms in (before, after)]
    left = f", {len(certificate['left_in_float32'])} of {certificate['layers']} layers in float32"
    agreement = certificate["agreement"]
    decided = (
        f", {agreement['agreed']} of {agreement['compared']} decide alike" if agreement["compared"] else ""
    )
    what = f"{certificate['method']}{left}{decided}"
    return [recipe.name, shape(recipe), *rows, f"{before / after:.2f}", ", ".join(metrics), what]


def main(names: list[str]) -> None:
    console = Console(width=200)
    threads = BackendOptions().thread_count
    table = Table(
        title=f"{processor()}, {threads} threads, batches of {BATCH_SIZE}, at least {ROUNDS} turns",
        title_justify="left",
        box=SIMPLE,
    )
    for column in ("model", "input", "float32 rows/s", "INT8 rows/s", "ratio", "metric", "INT8 is"):
        table.add_column(
            column, justify="right" if column in ("float32 rows/s", "INT8 rows/s", "ratio") else "left"
        )
    for name in names:
        path, _, model = name.rpartition(":")
        console.print(f"measuring {name}", style="dim")
        table.add_row(*row(*made_as(model, Store(Path(path or "model_store")))))
    console.print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
