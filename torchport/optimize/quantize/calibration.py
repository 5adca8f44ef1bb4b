"""Calibration inputs, on which the ranges of activations are measured.

calibration = Calibration.of(recipe, folder, held_out={})
for batch in calibration.pieces("main"): ...

They are like clients' inputs, and none of them is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from torchport.errors import RecipeError
from torchport.model.graphs import model_graphs
from torchport.model.trained import trained_model
from torchport.optimize.quantize.heldout import row_digests
from torchport.recipe.contract import Recipe
from torchport.recipe.handler import handler_class
from torchport.recipe.loading import find_handler
from torchport.recipe.user_code import running
from torchport.store.folders import BuildFolder

MAX_ROWS = 128
"""Maximum rows of a graph's calibration inputs; further rows are left out. They would hardly change a
range, and each costs a run with every activation kept."""

PIECE_ROWS = 8
"""Maximum rows whose activations are in memory together."""

Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """Calibration batches by graph.

    `rows` are their numbers of rows. `left_out` is the number of rows left out because they are held
    out. The graphs in `whole` have no batch dimension: each of their batches is one input.
    """

    batches: Mapping[str, list[Inputs]]
    rows: Mapping[str, int]
    left_out: int = 0
    whole: frozenset[str] = frozenset()

    @classmethod
    def of(cls, recipe: Recipe, folder: BuildFolder, held_out: Mapping[str, set[str]]) -> Calibration:
        """The recipe's `calibration` inputs for each graph, without held-out rows.

        `held_out` has the SHA-256 of these rows by graph.

        Raises:
            RecipeError: it fails, gives inputs of another shape, or none that are not held out.
        """
        with running(recipe.path, "graphs"):
            model_graphs(recipe, trained_model(recipe, folder))  # Some recipes' inputs are made of weights.
        padding = handler_class(find_handler(recipe)).padding
        batches: dict[str, list[Inputs]] = {}
        rows: dict[str, int] = {}
        left_out = 0
        for graph, signature in recipe.signatures().items():
            batches[graph], rows[graph] = [], 0
            with running(recipe.path, "calibration"):
                for given in recipe.calibration(graph):
                    signature.check_inputs(given, any_batch=True)
                    single = signature.batch_dim is None
                    whole = {name: array[None] for name, array in given.items()} if single else given
                    digests = row_digests(whole, padding)
                    keep = [digest not in held_out.get(graph, ()) for digest in digests]
                    left_out += keep.count(False)
                    keep = [k and i < MAX_ROWS - rows[graph] for i, k in enumerate(keep)]
                    rows[graph] += sum(keep)
                    if any(keep):
                        batches[graph].append(
                            {n: a[keep][0] if single else a[keep] for n, a in whole.items()}
                        )
                    if rows[graph] >= MAX_ROWS:
                        break
            if not rows[graph]:
                raise RecipeError(
                    f"{recipe.path.name}: nothing to calibrate graph {graph!r} on: its samples, "
                    f"{left_out} rows, are all held out, and what INT8 is judged by must not be what it is "
                    "made by: give the recipe calibration(self, graph), inputs that it was trained on"
                )
        rowless = {graph for graph, signature in recipe.signatures().items() if signature.batch_dim is None}
        return cls(batches, rows, left_out, frozenset(rowless))

    def pieces(self, graph: str) -> Iterator[Inputs]:
        """A graph's batches, cut so that their activations fit into memory.

        Batches with the largest numbers come first: a histogram whose range grows later is made anew,
        with ever more bins.
        """
        pieces = []
        for batch in self.batches[graph]:
            if graph in self.whole:
                pieces.append(batch)
                continue
            for start in range(0, len(next(iter(batch.values()))), PIECE_ROWS):
                pieces.append({name: array[start : start + PIECE_ROWS] for name, array in batch.items()})
        yield from sorted(pieces, key=_largest, reverse=True)

    @property
    def sha256(self) -> str:
        """SHA-256 of all batches, in order."""
        digest = hashlib.sha256()
        for graph in sorted(self.batches):
            for batch in self.batches[graph]:
                for name in sorted(batch):
                    array = np.ascontiguousarray(batch[name])
                    digest.update(f"{graph} {name} {array.dtype} {array.shape} ".encode())
                    digest.update(array.tobytes())
        return digest.hexdigest()


def _largest(inputs: Inputs) -> float:
    floats = [array for array in inputs.values() if array.dtype.kind == "f"]
    return max((float(np.abs(array).max(initial=0.0)) for array in floats), default=0.0)
