"""The fast paths beside each other: one small convolutional network on every backend.

    python -m bench.fast_paths                   # writes .cache/fast-paths, a minute or two
    python -m bench.fast_paths --half            # in float16 and bfloat16 too: two more to compile

Batches of 1 and of 8, one thread, medians of turns that are taken one after the other, so that what else the
machine does hits all alike; nothing but the model is timed. AOTInductor needs a C++ compiler.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from torchport.export.exporting import export
from torchport.model.exported import exported_variants
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.store.machine import processor
from torchport.store.variants import Variant, has_passed
from torchport.train.training import train
from torchport.verify.verifying import verify
from torchport_runtime import BackendOptions
from torchport_runtime.backends.backend import Backend, open_backend

RECIPE = Path(__file__).parent / "small_convolutions.py"
STORE = Store(Path(".cache") / "fast-paths")
ROUNDS, BATCHES = 60, (1, 8)
THREADS = 1
"""More of them wait for each other where the machine does something else, and then that is measured."""


def milliseconds(backends: dict[Variant, Backend], inputs: dict[str, np.ndarray]) -> dict[Variant, float]:
    """The median of one run of each, in turns."""
    taken: dict[Variant, list[float]] = {variant: [] for variant in backends}
    for turn in range(ROUNDS + 5):
        for variant, backend in backends.items():
            begun = time.perf_counter()
            backend.run(inputs)
            if turn >= 5:
                taken[variant].append((time.perf_counter() - begun) * 1000)
    return {variant: median(found) for variant, found in taken.items()}


def main() -> None:
    recipe = load_recipe(RECIPE, {"half": "--half" in sys.argv[1:]})
    folder = STORE.build(recipe.name, recipe.version)
    train(recipe, folder)
    export(recipe, folder)
    result = verify(recipe, folder)
    (signature,) = recipe.signatures().values()
    backends = {
        variant: open_backend(
            folder.path / variant.artifact("main"),
            signature,
            BackendOptions(
                backend=variant.backend, precision=variant.precision, device="cpu", threads=THREADS
            ),
        )
        for variant in exported_variants(recipe, folder)
    }
    samples = next(iter(recipe.samples()))
    found = {rows: milliseconds(backends, {n: a[:rows] for n, a in samples.items()}) for rows in BATCHES}
    table = Table(title=f"{recipe.task}: {processor()}, {THREADS} thread", box=SIMPLE)
    for column in ("backend", *(f"{rows} row(s), ms, and of onnxruntime's" for rows in BATCHES), "parity"):
        table.add_column(column)
    for variant in backends:
        times = [
            f"{found[rows][variant]:.2f}  {found[rows][variant] / found[rows][Variant('onnxruntime')]:.2f}"
            for rows in BATCHES
        ]
        table.add_row(str(variant), *times, "passed" if has_passed(result.certificate, variant) else "FAILED")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
