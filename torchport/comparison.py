"""One graph on one backend and device, held against the reference on every case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchport.cases import Case
from torchport.errors import BackendError, SignatureError
from torchport.reference import BATCH_ROWS, Reference, Truth
from torchport_runtime import Signature
from torchport_runtime.backends import Backend


class Comparison:
    """One graph on one backend and device, over all cases."""

    def __init__(
        self, graph: str, backend: str, device: str, signature: Signature, reference: Reference
    ) -> None:
        self.graph, self.backend, self.device = graph, backend, device
        self.signature, self.reference = signature, reference
        self.failures: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._decisions = {"compared": 0, "agreed": 0, "ties": 0}
        self._batch_rows = 0

    def fail(self, case: str, problem: str) -> None:
        where = f"{self.backend} on {self.device}, graph {self.graph}"
        self.failures.append(f"{where}{', ' + case if case else ''}: {problem}")

    def differs_in(self, case: str) -> bool:
        """Whether a case was computed, and has failed."""
        computed = any(row["case"] == case for row in self._rows)
        return computed and any(f", {case}: " in failure for failure in self.failures)

    def compare_all(self, backend: Backend, cases: Sequence[Case]) -> None:
        for case in cases:
            try:
                outputs = backend.run(case.inputs)
                self.signature.check_outputs(outputs)
            except (BackendError, SignatureError) as err:
                self.fail(case.name, str(err))
                continue
            self._compare(case.name, case.name, outputs)
        batch_dim = self.signature.batch_dim
        if batch_dim is None:
            return
        for case in cases:
            if case.compares_rows:
                self._compare_singles(backend, case)

    def _compare_singles(self, backend: Backend, case: Case) -> None:
        """The rows of one batch again, one by one, held against the same reference."""
        rows = min(BATCH_ROWS, case.rows)
        try:
            singles = [
                backend.run({name: array[i : i + 1] for name, array in case.inputs.items()})
                for i in range(rows)
            ]
        except BackendError as err:
            self.fail(f"{case.name}, row by row", str(err))
            return
        outputs = {n: np.concatenate([single[n] for single in singles]) for n in self.signature.outputs}
        self._batch_rows += rows
        self._compare(f"{case.name}, row by row", case.name, outputs, rows)

    def _compare(
        self, label: str, case: str, outputs: Mapping[str, np.ndarray], rows: int | None = None
    ) -> None:
        for name, array in outputs.items():
            truth = self.reference.truth(case, name)
            eager, expected = self.reference.eager(case, name), truth.value
            if rows is not None:
                eager, expected = eager[:rows], expected[:rows]
            if array.shape != eager.shape or array.dtype != eager.dtype:
                self.fail(
                    label,
                    f"output {name!r} is {array.dtype}{list(array.shape)}, eager gives "
                    f"{eager.dtype}{list(eager.shape)}",
                )
                continue
            if array.dtype.kind != "f":
                wrong = int((array != eager).sum())
                self._rows.append({"case": label, "output": name, "unequal": wrong})
                if wrong:
                    self.fail(label, f"output {name!r}: {wrong} of {array.size} values differ from eager's")
                continue
            self._compare_floats(label, name, array, eager, expected, truth)
            self._rows[-1] |= {"eager_error": _short(truth.eager_error), "scale": _short(truth.scale)}
            self._compare_decisions(label, name, array, eager, expected, truth.bound)

    def _compare_floats(
        self,
        label: str,
        name: str,
        array: np.ndarray,
        eager: np.ndarray,
        expected: np.ndarray,
        truth: Truth,
    ) -> None:
        bound = truth.bound
        finite = np.isfinite(eager)
        if not np.array_equal(array[~finite], eager[~finite], equal_nan=True):
            self.fail(label, f"output {name!r}: NaN or Inf is not where eager PyTorch has it")
        error = np.zeros(array.shape)
        with np.errstate(invalid="ignore"):
            error[finite] = np.abs(array[finite].astype(np.float64) - expected[finite])
        stray = finite & ~np.isfinite(array)
        error[stray] = np.inf
        worst = float(error.max(initial=0.0))
        self._rows.append({"case": label, "output": name, "error": _short(worst), "bound": _short(bound)})
        if not worst <= bound:
            at = np.unravel_index(int(error.argmax()), error.shape)
            self.fail(
                label,
                f"output {name!r}: error {worst:.3g} exceeds the bound {bound:.3g}; at "
                f"{[int(i) for i in at]} it is {array[at]:.6g}, the trained model says {expected[at]:.6g}",
            )
        elif truth.channel_bounds is not None:
            over = error.reshape(-1, truth.channel_bounds.size).max(axis=0) / truth.channel_bounds
            channel = int(over.argmax())
            if over[channel] > 1:
                self.fail(
                    label,
                    f"output {name!r}: the error at index {channel} of the last axis is {over[channel]:.3g} "
                    f"times the bound {truth.channel_bounds[channel]:.3g} of that index alone",
                )

    def _compare_decisions(
        self,
        label: str,
        name: str,
        array: np.ndarray,
        eager: np.ndarray,
        expected: np.ndarray,
        bound: float,
    ) -> None:
        """Argmax over the last axis, where that is a fixed number of classes.

        Near ties do not count, nor does what eager float32 itself decides otherwise than in float64.
        """
        shape = self.signature.outputs[name].shape
        classes = shape[-1] if shape else 0
        if not isinstance(classes, int) or classes < 2 or not array.size:
            return
        ranked = np.sort(np.where(np.isfinite(expected), expected, -np.inf), axis=-1)
        with np.errstate(invalid="ignore"):
            clear = (ranked[..., -1] - ranked[..., -2] > 2 * bound) & np.isfinite(expected).all(axis=-1)
        clear = clear & np.isfinite(eager).all(axis=-1) & (eager.argmax(axis=-1) == expected.argmax(axis=-1))
        same = array.argmax(axis=-1) == expected.argmax(axis=-1)
        self._decisions["compared"] += int(clear.sum())
        self._decisions["agreed"] += int((same & clear).sum())
        self._decisions["ties"] += int((~clear).sum())
        wrong = int((clear & ~same).sum())
        if wrong:
            self.fail(label, f"output {name!r}: {wrong} of {int(clear.sum())} decisions (argmax) differ")

    def summary(self) -> dict[str, Any]:
        """What the certificate says of this graph and backend."""
        ratios = [
            row["error"] / row["bound"] if np.isfinite(row["error"]) else np.inf
            for row in self._rows
            if "bound" in row
        ]
        return {
            "graph": self.graph,
            "backend": self.backend,
            "device": self.device,
            "passed": not self.failures,
            "cases": len({row["case"] for row in self._rows}),
            "worst_error_to_bound": _short(max(ratios, default=0.0)),
            "decisions": self._decisions,
            "rows_alone_and_batched": self._batch_rows,
            "comparisons": [
                {k: (str(v) if v == np.inf else v) for k, v in row.items()} for row in self._rows
            ],
        }


def _short(value: float) -> float:
    """Three significant digits: what is said of an error, and the same on a second run."""
    return float(f"{value:.3g}")
