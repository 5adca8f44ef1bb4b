"""Runs a recipe's held-out examples on a handler in process.

examples = HeldOut(recipe, batch_size=8)
measured = examples.measure(handler)
measured.metrics                                  # {"accuracy": 0.975}
measured.agreement(examples.measure(quantised))   # Agreement(compared=360, agreed=359)

The results are metrics, decisions, and the seconds of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import numpy as np

from torchport.errors import RecipeError
from torchport.recipe.contract import Recipe
from torchport.recipe.user_code import running
from torchport.store.hashing import sha256_bytes
from torchport.verify.answers.decisions import Decided, choices, decided, differing
from torchport.verify.answers.equality import as_served
from torchport_runtime import Handler, InferenceRequest
from torchport_runtime.requests.batching import common_sizes, run_together

Batch = tuple[str, dict[str, np.ndarray]]
"""A graph's name and its inputs."""

TIMED_BATCHES = 4

MANY_MATES = 32
"""Minimum requests of a shuffled batch: as many as a tuning tries."""


@dataclass(frozen=True)
class Agreement:
    """Number of examples on which a model decides, and on which another agrees."""

    compared: int
    agreed: int

    @property
    def share(self) -> float | None:
        return self.agreed / self.compared if self.compared else None


@dataclass(frozen=True)
class Measured:
    """Metrics and decisions of a handler on the held-out examples."""

    metrics: dict[str, float]
    decisions: list[Decided]

    def agreement(self, other: Measured) -> Agreement:
        """Count the examples on which these answers decide, and on which both agree."""
        pairs = [p for p in zip(self.decisions, other.decisions, strict=True) if p[0].parts]
        return Agreement(len(pairs), sum(not differing(two, one) for one, two in pairs))


class HeldOut:
    """A recipe's held-out examples.

    Raises:
        RecipeError: the recipe has no held-out examples, or they cannot be read.
    """

    def __init__(self, recipe: Recipe, *, batch_size: int) -> None:
        with running(recipe.path, "heldout"):
            examples = list(recipe.heldout())
        if not examples:
            raise RecipeError(
                f"{recipe.path.name}: heldout() gives nothing, so that there is no metric to hold INT8 to: "
                "give it examples with their truths, a score() and goals"
            )
        self._recipe, self._batch_size = recipe, batch_size
        self._expected = [example.expected for example in examples]
        self._requests = [example.request for example in examples]

    def __len__(self) -> int:
        return len(self._requests)

    def measure(self, handler: Handler, *, shuffled: bool = False) -> Measured:
        """Answer all examples, in batches as a loaded server forms them.

        A batch has consecutive examples. With `shuffled` it has others, and more of them.

        Raises:
            RecipeError: the handler refuses an example, or `score` fails.
        """
        count = len(self._requests)
        order = np.random.default_rng(0).permutation(count) if shuffled else np.arange(count)
        size = max(self._batch_size, MANY_MATES) if shuffled else self._batch_size
        answers: list[Any] = [None] * count
        for start in range(0, count, size):
            chunk = order[start : start + size].tolist()
            asked = [InferenceRequest(self._requests[index].fields()) for index in chunk]
            for index, answer in zip(chunk, handler.answer(asked), strict=True):
                if answer.status != 200:
                    raise RecipeError(f"{self._recipe.path.name}: held-out example {index}: {answer.value}")
                answers[index] = as_served(answer)
        with running(self._recipe.path, "score"):
            scores = self._recipe.score(answers, self._expected)
        metrics = {str(name): float(value) for name, value in scores.items()}
        return Measured(metrics, [choices(decided(answer, handler.decides)) for answer in answers])

    def row_digests(self, handler: Handler) -> dict[str, set[str]]:
        """SHA-256 of every held-out row by graph; calibration must not use them."""
        found: dict[str, set[str]] = {}
        for sent in self._requests:
            request = InferenceRequest(sent.fields())
            with running(self._recipe.path, "decode"):
                tensors = handler.read(request)
            if handler.signatures[request.graph].batch_dim is None:
                tensors = {name: array[None] for name, array in tensors.items()}
            found.setdefault(request.graph, set()).update(row_digests(tensors, handler.padding))
        return found

    def batches(self, handler: Handler) -> list[Batch]:
        """The first `TIMED_BATCHES` batches as they enter the graphs, for timing."""
        found: list[Batch] = []
        for start in range(0, min(len(self), TIMED_BATCHES * self._batch_size), self._batch_size):
            groups: dict[Any, list[dict[str, np.ndarray]]] = {}
            for sent in self._requests[start : start + self._batch_size]:
                request = InferenceRequest(sent.fields())
                with running(self._recipe.path, "decode"):
                    tensors = handler.read(request)
                shared = common_sizes(handler.signatures[request.graph], tensors, handler.padding)
                groups.setdefault((request.graph, shared), []).append(tensors)
            for (graph, _), parts in groups.items():

                def keep(inputs: dict[str, np.ndarray], graph: str = graph) -> dict[str, np.ndarray]:
                    found.append((graph, inputs))
                    return handler.infer(graph, inputs)

                run_together(handler.signatures[graph], parts, handler.padding, keep)
        return found


def row_digests(tensors: Mapping[str, np.ndarray], padding: Mapping[str, float]) -> Iterator[str]:
    """SHA-256 of each row of some inputs, without its padding."""
    rows = min(len(array) for array in tensors.values())
    for index in range(rows):
        parts = b""
        for name in sorted(tensors):
            row = tensors[name][index]
            if name in padding and row.ndim == 1:
                row = np.trim_zeros(row - padding[name], "b") + padding[name]
            parts += name.encode() + str(row.shape).encode() + np.ascontiguousarray(row).tobytes()
        yield sha256_bytes(parts)


def interleaved_seconds(
    handlers: Mapping[str, Handler], batches: list[Batch], *, rounds: int, at_least: float = 0.0
) -> dict[str, float]:
    """Median seconds for all the batches, by handler.

    Every round runs each handler once and begins with another one, so that other work on the machine
    affects all alike. There are at least `rounds` rounds, and more until `at_least` seconds have
    passed: a few runs of a small model are over too soon to be compared.
    """

    def run(handler: Handler) -> None:
        for graph, inputs in batches:
            handler.infer(graph, inputs)

    runs: dict[str, Callable[[], None]] = {name: partial(run, h) for name, h in handlers.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for warm_up in runs.values():
        warm_up()
    began = time.perf_counter()
    for number in count():
        if number >= rounds and time.perf_counter() - began >= at_least:
            break
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            started = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - started)
    return {name: median(times) for name, times in taken.items()}
