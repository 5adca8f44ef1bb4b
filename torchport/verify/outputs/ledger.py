"""Failures and figures of one graph on one backend and device.

ledger = Ledger("main", "pt2", "cpu", signature, reference)
ledger.compare("sample 0, threads=3", "sample 0", backend.run(inputs))
ledger.failures                      # ["pt2 on cpu, graph main, sample 0, threads=3: output 'y': ..."]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from torchport.verify.outputs.cases import Case
from torchport.verify.outputs.decisions import Decisions
from torchport.verify.outputs.diagnosis import describe, mistaken_for
from torchport.verify.outputs.error_statistics import absolute_error, figures, same_values, short
from torchport.verify.outputs.reference import Reference, Truth
from torchport.verify.outputs.rms_error import TypicalError
from torchport_runtime import Signature

ALL = slice(None)

Hiding = Callable[[Mapping[str, np.ndarray], str], list[str]]
"""Names the kernels above an output that hide NaN, for a graph's inputs."""


class Ledger:
    """Compares outputs with the reference, and collects failures and figures.

    `hiding` names kernels of the backend that give finite numbers for inputs that are not finite; the
    graph is not to blame for them.
    """

    def __init__(
        self,
        graph: str,
        backend: str,
        device: str,
        signature: Signature,
        reference: Reference,
        precision: str = "float32",
    ) -> None:
        self.graph, self.backend, self.device, self.precision = graph, backend, device, precision
        self.signature, self.reference = signature, reference
        self.failures: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.decisions = Decisions()
        self.typical = None if precision == "float32" else TypicalError(reference.bound_of["epsilon"])
        self.not_finite: dict[str, Any] = {"compared": 0, "alike": 0, "hidden": []}
        self.hiding: Hiding = lambda inputs, output: []
        self._beyond_range = 0

    def fail(self, case: str, problem: str) -> None:
        half = "" if self.precision == "float32" else f" {self.precision}"
        where = f"{self.backend}{half} on {self.device}, graph {self.graph}"
        self.failures.append(f"{where}{', ' + case if case else ''}: {problem}")

    def differs_in(self, case: str) -> bool:
        """Whether a case was computed, and has failed."""
        computed = any(row["case"] == case for row in self.rows)
        return computed and any(f", {case}: " in failure for failure in self.failures)

    def compare(self, label: str, case: str, outputs: Mapping[str, np.ndarray], rows: slice = ALL) -> None:
        """Compare outputs with `rows` of the reference for a case.

        Failures begin with `label`.
        """
        for name, array in outputs.items():
            truth = self.reference.truth(case, name)
            eager, expected = self.reference.eager(case, name), truth.value
            if rows != ALL:
                eager, expected = eager[rows], expected[rows]
            if array.shape != eager.shape or array.dtype != eager.dtype:
                self.fail(
                    label,
                    f"output {name!r} is {array.dtype}{list(array.shape)}, eager gives "
                    f"{eager.dtype}{list(eager.shape)}",
                )
                continue
            if array.dtype.kind != "f":
                unlike = array != eager
                if self.precision != "float32":
                    # What is near in float32 may be a tie in half of its bits: either side of it is right.
                    unlike &= array != expected
                wrong = int(unlike.sum())
                self.rows.append({"case": label, "output": name, "unequal": wrong})
                if wrong:
                    where = describe(unlike, self.signature.outputs[name].shape)
                    self.fail(
                        label,
                        f"output {name!r}: {wrong} of {array.size} values differ from eager's ({where})",
                    )
                continue
            others = {
                other: self.reference.truth(case, other).value[rows]
                if rows != ALL
                else self.reference.truth(case, other).value
                for other in outputs
                if other != name
            }
            beyond = self.reference.overflowed(case, name)
            self._compare_floats(
                label,
                name,
                array,
                eager,
                expected,
                truth,
                others,
                beyond[rows] if rows != ALL else beyond,
            )
            self.rows[-1] |= {
                "eager_error": short(truth.eager_error),
                "scale": short(truth.scale),
                "errors": figures(array, expected, truth.scale),
                "eager_errors": self.reference.eager_figures(case, name, rows),
            }
            if self.typical is not None:
                self.typical.add(name, array, eager, expected)
            shape = self.signature.outputs[name].shape
            for problem in self.decisions.compare(label, name, shape, array, eager, expected, truth.bound):
                self.fail(label, problem)

    def _compare_floats(
        self,
        label: str,
        name: str,
        array: np.ndarray,
        eager: np.ndarray,
        expected: np.ndarray,
        truth: Truth,
        others: Mapping[str, np.ndarray],
        beyond: np.ndarray,
    ) -> None:
        bound = truth.bound
        finite = np.isfinite(eager)
        lost = ~finite & ~beyond
        if not same_values(array[lost], eager[lost]):
            self.fail(label, f"output {name!r}: NaN or Inf is not where eager PyTorch has it")
        # Beyond a half precision's range a backend may do better than eager, by a wider intermediate, but
        # what it then gives has to be true.
        finite = finite | (beyond & np.isfinite(array))
        self._beyond_range += int(beyond.sum())
        error = absolute_error(array, expected, finite)
        worst = float(error.max(initial=0.0))
        self.rows.append({"case": label, "output": name, "error": short(worst), "bound": short(bound)})
        if not worst <= bound:
            at = np.unravel_index(int(error.argmax()), error.shape)
            where = describe(error > bound, self.signature.outputs[name].shape)
            held = mistaken_for(array, expected, others, bound)
            self.fail(
                label,
                f"output {name!r}: error {worst:.3g} exceeds the bound {bound:.3g}; at "
                f"{[int(i) for i in at]} it is {array[at]:.6g}, the trained model says {expected[at]:.6g} "
                f"({where}){'; ' + held if held else ''}",
            )
            return
        for axis, bounds in truth.channel_bounds.items():
            over = error.max(axis=tuple(a for a in range(error.ndim) if a != axis)) / bounds
            channel = int(over.argmax())
            if over[channel] > 1:
                which = "the last axis" if axis == error.ndim - 1 else f"axis {axis}"
                self.fail(
                    label,
                    f"output {name!r}: the error at index {channel} of {which} is {over[channel]:.3g} "
                    f"times the bound {bounds[channel]:.3g} of that index alone",
                )

    def compare_not_finite(self, case: Case, outputs: Mapping[str, np.ndarray]) -> None:
        """Check that NaN and Inf come out where the model gives them.

        If a kernel of the backend hides NaN or Inf of the inputs (`hiding`), this is noted and no
        failure: it says nothing of the graph, and no request holds NaN. If finite inputs become
        infinite on the way, hiding that is the graph's failure.
        """
        given = not all(np.isfinite(array).all() for array in case.inputs.values())
        for name, array in outputs.items():
            eager = self.reference.eager(case.name, name)
            if array.dtype.kind != "f" or array.shape != eager.shape:
                continue
            self.not_finite["compared"] += array.size
            self.not_finite["alike"] += int((np.isfinite(array) == np.isfinite(eager)).sum())
            hidden = self.reference.not_finite(case.name, name) & np.isfinite(array)
            if case.judged != "hidden" or not hidden.any():
                continue
            kernels = self.hiding(case.inputs, name) if given else []
            self.not_finite["hidden"].append(
                {"case": case.name, "output": name, "values": int(hidden.sum()), "by": kernels}
            )
            if not kernels:
                at = tuple(int(i) for i in np.argwhere(hidden)[0])
                self.fail(
                    case.name,
                    f"output {name!r}: at {list(at)} it is the finite {array[at]:.6g}, the trained model "
                    f"says {eager[at]}: NaN or Inf is hidden ({int(hidden.sum())} of {hidden.size} values)",
                )

    def of_half(self) -> dict[str, Any]:
        """The certificate's additional keys for a half precision; empty for float32."""
        if self.typical is None:
            return {}
        return {
            "typical_error": self.typical.summary(),
            "precision": self.precision,
            "bound": self.reference.bound_of,
            "beyond_range": self._beyond_range,
        }
