"""Checks that row order, repetition, threads and memory layout do not change answers.

    check = Invariances(ledger, cases)
    check.other_order(backend); check.other_layout(backend); check.repeated(backend)
    check.threads(lambda count: open_backend(path, signature, replace(options, threads=count)))

An export that keeps state, draws noise, writes into its inputs or has its batch's order traced into it
gives right answers when each input is given once, in one order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from torchport.errors import BackendError, SignatureError
from torchport.verify.outputs.cases import THREADS, Case
from torchport.verify.outputs.error_statistics import same_values
from torchport.verify.outputs.ledger import Ledger
from torchport_runtime.backends.backend import Backend

ROWS = 8
"""Maximum rows of a batch that are used. State, order and threads show in a few rows as in many."""


class Invariances:
    """The checks of one comparison, on the recipe's samples.

    The order of rows is also checked on random inputs.
    """

    def __init__(self, ledger: Ledger, cases: Sequence[Case]) -> None:
        self._ledger = ledger
        self._batched = ledger.signature.batch_dim is not None
        self._samples = [self._few(case) for case in cases if case.is_sample]
        self._batches = [self._few(case) for case in cases if case.compares_rows] if self._batched else []
        self.counts: dict[str, Any] = {
            "rows_in_other_order": 0,
            "repeated": 0,
            "other_layouts": 0,
            "threads": {"counts": [], "compared": 0},
        }

    def _few(self, case: Case) -> Case:
        if not self._batched:
            return case
        return replace(case, inputs={name: array[:ROWS] for name, array in case.inputs.items()})

    def other_order(self, backend: Backend) -> None:
        """Run every batch in reverse order: each answer must move with its row."""
        for case in self._batches:
            if case.rows < 2:
                continue
            backwards = slice(case.rows - 1, None, -1)
            turned = {name: np.ascontiguousarray(array[::-1]) for name, array in case.inputs.items()}
            if self._run(backend, case, f"{case.name}, rows in reverse order", turned, backwards):
                self.counts["rows_in_other_order"] += case.rows

    def other_layout(self, backend: Backend) -> None:
        """Run samples as non-contiguous views, as a handler may pass them."""
        for case in self._samples:
            views = {name: _strided(array) for name, array in case.inputs.items()}
            if self._run(backend, case, f"{case.name}, not contiguous in memory", views):
                self.counts["other_layouts"] += 1

    def repeated(self, backend: Backend) -> None:
        """Run each sample twice more, with another input in between.

        The two answers must agree within the bound. Earlier answers must not change, as they would if
        they were views of memory that the graph keeps. Inputs must not be overwritten.
        """
        for case in self._samples:
            given = {name: array.copy() for name, array in case.inputs.items()}
            label = f"{case.name}, once more"
            first = self._answer(backend, label, given)
            if first is None:
                continue
            for name, array in given.items():
                if not np.array_equal(array, case.inputs[name]):
                    self._ledger.fail(
                        label,
                        f"input {name!r} is overwritten by the graph: an operation in place in forward?",
                    )
            kept = {name: array.copy() for name, array in first.items()}
            # Flattened, and turned round: other inputs of the same shapes and within the same bounds.
            other = {name: np.roll(array, 1) for name, array in case.inputs.items()}
            if self._answer(backend, label, other) is None:
                continue
            for name, array in first.items():
                if not same_values(array, kept[name]):
                    self._ledger.fail(
                        label, f"output {name!r} changed after it was given, when the graph ran again"
                    )
            again = self._answer(backend, label, {name: a.copy() for name, a in case.inputs.items()})
            if again is None:
                continue
            self._compare_repeated(case, label, kept, again)
            self._ledger.compare(label, case.name, again, self._rows(case))
            self.counts["repeated"] += 1

    def threads(self, reopen: Callable[[int], Backend]) -> None:
        """Run samples with one thread and with several.

        `reopen` opens the artifact with a number of threads.

        Raises:
            BackendError: the artifact does not open again.
        """
        for count in THREADS:
            backend = reopen(count)
            self.counts["threads"]["counts"].append(count)
            for case in self._samples:
                if self._run(backend, case, f"{case.name}, threads={count}", case.inputs):
                    self.counts["threads"]["compared"] += 1

    def _compare_repeated(
        self,
        case: Case,
        label: str,
        first: Mapping[str, np.ndarray],
        again: Mapping[str, np.ndarray],
    ) -> None:
        """Compare two answers to the same input."""
        for name, array in again.items():
            before = first[name]
            if array.shape == before.shape and same_values(array, before):
                continue
            bound = self._ledger.reference.truth(case.name, name).bound
            if array.shape == before.shape and np.allclose(array, before, rtol=0, atol=bound, equal_nan=True):
                continue  # Kernels that share work out may sum in another order each time.
            self._ledger.fail(
                label,
                f"output {name!r} is another for the same input: dropout left on, noise, or state that the "
                "graph keeps between calls?",
            )

    def _rows(self, case: Case) -> slice:
        """The rows of the reference that belong to a case's rows."""
        return slice(case.rows) if self._batched else slice(None)

    def _run(
        self,
        backend: Backend,
        case: Case,
        label: str,
        inputs: Mapping[str, np.ndarray],
        rows: slice | None = None,
    ) -> bool:
        outputs = self._answer(backend, label, inputs)
        if outputs is not None:
            self._ledger.compare(label, case.name, outputs, rows or self._rows(case))
        return outputs is not None

    def _answer(
        self, backend: Backend, label: str, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray] | None:
        try:
            outputs = backend.run(inputs)
            self._ledger.signature.check_outputs(outputs)
        except (BackendError, SignatureError) as err:
            self._ledger.fail(label, str(err))
            return None
        return outputs


def _strided(array: np.ndarray) -> np.ndarray:
    """The same values as a strided view of a larger array."""
    if not array.ndim:
        return array
    wide = np.repeat(array, 2, axis=-1)
    view: np.ndarray = wide[..., ::2]
    return view
