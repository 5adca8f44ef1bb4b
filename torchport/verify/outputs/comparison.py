"""Compares one graph on one backend and device with the reference.

comparison = Comparison(Ledger("main", "pt2", "cpu", signature, reference))
comparison.compare_all(backend, reopen)
comparison.summary()["passed"]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from torchport.errors import BackendError, SignatureError
from torchport.verify.outputs.cases import BATCH_ROWS, Case
from torchport.verify.outputs.error_statistics import short
from torchport.verify.outputs.invariances import Invariances
from torchport.verify.outputs.ledger import Hiding, Ledger
from torchport_runtime.backends.backend import Backend


class Comparison:
    """Comparison of one graph on one backend and device, over all cases.

    Its `ledger` has the results.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._invariances = Invariances(ledger, ledger.reference.cases)
        self._batch_rows = 0

    def compare_all(
        self, backend: Backend, reopen: Callable[[int], Backend], hiding: Hiding | None = None
    ) -> None:
        """Run every case and write the results into the ledger.

        `reopen` opens the same artifact again with a number of threads. `hiding` names kernels of the
        backend that give finite numbers for inputs that are not finite; the graph is not to blame for
        them.

        Raises:
            BackendError: the artifact does not open again.
        """
        ledger = self.ledger
        cases = ledger.reference.cases
        ledger.hiding = hiding or ledger.hiding
        for case in cases:
            try:
                # Of a copy: a graph that writes into its inputs is told of, and spoils no other comparison.
                outputs = backend.run({name: array.copy() for name, array in case.inputs.items()})
                ledger.signature.check_outputs(outputs)
            except (BackendError, SignatureError) as err:
                if case.judged != "counted":
                    ledger.fail(case.name, str(err))
                continue
            if case.judged == "values":
                ledger.compare(case.name, case.name, outputs)
            else:
                ledger.compare_not_finite(case, outputs)
        if ledger.signature.batch_dim is not None:
            for case in cases:
                if case.compares_rows:
                    self._compare_singles(backend, case)
        self._invariances.other_order(backend)
        self._invariances.other_layout(backend)
        self._invariances.repeated(backend)
        if ledger.typical is not None:
            for problem in ledger.typical.problems():
                ledger.fail("", problem)
        if ledger.device == "cpu":  # On another device, threads of the CPU compute nothing.
            self._invariances.threads(reopen)

    def _compare_singles(self, backend: Backend, case: Case) -> None:
        """Compare single rows of one batch with the same reference."""
        rows = min(BATCH_ROWS, case.rows)
        try:
            singles = [
                backend.run({name: array[i : i + 1].copy() for name, array in case.inputs.items()})
                for i in range(rows)
            ]
        except BackendError as err:
            self.ledger.fail(f"{case.name}, row by row", str(err))
            return
        outputs = {
            n: np.concatenate([single[n] for single in singles]) for n in self.ledger.signature.outputs
        }
        self._batch_rows += rows
        self.ledger.compare(f"{case.name}, row by row", case.name, outputs, slice(rows))

    def summary(self) -> dict[str, Any]:
        """The certificate's entry for this graph, backend and device."""
        ledger = self.ledger
        ratios = [
            row["error"] / row["bound"] if np.isfinite(row["error"]) else np.inf
            for row in ledger.rows
            if "bound" in row
        ]
        return {
            "graph": ledger.graph,
            "backend": ledger.backend,
            "device": ledger.device,
            **ledger.of_half(),
            "passed": not ledger.failures,
            "cases": len({row["case"] for row in ledger.rows}),
            "worst_error_to_bound": short(max(ratios, default=0.0)),
            "decisions": ledger.decisions.summary(),
            "rows_alone_and_batched": self._batch_rows,
            **self._invariances.counts,
            "not_finite": ledger.not_finite,
            "comparisons": [
                {k: (str(v) if v == np.inf else v) for k, v in row.items()} for row in ledger.rows
            ],
        }
