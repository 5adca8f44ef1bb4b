"""The reference for a backend's outputs: the trained model in float64.

The bounds follow from the distance of eager float32 from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import RecipeError
from torchport.model.eager import EagerBackend, perturbed_module
from torchport.verify.outputs.cases import THREADS, Case
from torchport.verify.outputs.error_statistics import figures
from torchport.verify.torch_threads import torch_threads_kept
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import nn

EAGER_MULTIPLE = 10
SCALE_EPSILONS = 16
"""Factors of the bound on an output's error, in its max-norm. The bound is the larger of `EAGER_MULTIPLE`
times eager float32's own error on the same inputs and `SCALE_EPSILONS` machine epsilons of the output's
scale."""

CHANNEL_ROWS = 8
"""Minimum rows of all samples together for bounds on single channels. With fewer rows there are none."""


@dataclass(frozen=True)
class Truth:
    """The expected value of one output of one case.

    `bound`, `eager_error` and `scale` are in the output's max-norm.

    `channel_bounds` are, by axis, bounds for each index of that axis separately, so that a large channel
    hides no small one. The axes are 1 and the last one: the channels of images and of rows. They have
    such bounds if their size is fixed and the real samples have at least `CHANNEL_ROWS` rows.
    """

    value: np.ndarray
    eager_error: float
    scale: float
    bound: float
    channel_bounds: Mapping[int, np.ndarray] = field(default_factory=dict)


class Reference:
    """Runs the trained model on every case, in float32 and in float64.

    `kind` is "float64", or says why it is float32. In that case eager's own error is estimated: it is
    the change of the outputs when weights and inputs are perturbed by a float32 epsilon. `cases` are
    those that the model runs on. `refused` says by name why it does not run on other cases, which were
    optional.
    """

    def __init__(self, module: nn.Module, signature: Signature, cases: Sequence[Case]) -> None:
        self._signature = signature
        self._module = module
        self.refused: dict[str, str] = {}
        self._figures: dict[tuple[Any, ...], dict[str, float]] = {}
        self._eager = self._run_all(cases)
        self.kind, self._double = self._truths([case for case in cases if case.name in self._eager])
        self.cases = [case for case in cases if case.name not in self.refused]
        cases = self.cases
        others = self._others(cases)
        self._otherwise = self._by_other_threads([case for case in cases if case.is_sample])
        self._truth = {
            case.name: {
                name: self._measure(
                    name,
                    self._double[case.name][name],
                    self._eager[case.name][name],
                    [other[case.name][name] for other in others],
                    [by[case.name][name] for by in self._otherwise if case.name in by],
                )
                for name in signature.outputs
            }
            for case in cases
        }
        self._bound_lucky_cases()
        real = [case for case in cases if case.is_sample]
        self._bound_channels(real, others)

    def eager(self, case: str, output: str) -> np.ndarray:
        """The output in eager float32."""
        return self._eager[case][output]

    def truth(self, case: str, output: str) -> Truth:
        """The output in float64, and the maximum error of a backend."""
        return self._truth[case][output]

    @property
    def bound_of(self) -> dict[str, float]:
        """Factors that make the bound from eager's own error and the output's scale."""
        return {"eager_multiple": EAGER_MULTIPLE, "scale_epsilons": SCALE_EPSILONS}

    def overflowed(self, case: str, output: str) -> np.ndarray:
        """Mask of values beyond a half precision's range; all False in float32."""
        return np.zeros(self._eager[case][output].shape, bool)

    def eager_figures(self, case: str, output: str, rows: slice) -> dict[str, float]:
        """Eager's own error figures in some rows, shown next to every backend's."""
        key = (case, output, rows.start, rows.stop, rows.step)
        if key not in self._figures:
            truth = self._truth[case][output]
            eager, value = self._eager[case][output], truth.value
            if eager.ndim:
                eager, value = eager[rows], value[rows]
            self._figures[key] = figures(eager, value, truth.scale)
        return dict(self._figures[key])

    def not_finite(self, case: str, output: str) -> np.ndarray:
        """Mask of values that neither float32 nor float64 has within float32's range."""
        eager, double = self._eager[case][output], self._double[case][output]
        if eager.dtype.kind != "f":
            return np.zeros(eager.shape, bool)
        with np.errstate(invalid="ignore"):
            within = np.abs(double) <= float(np.finfo(eager.dtype).max)
        lost: np.ndarray = ~np.isfinite(eager) & ~within
        return lost

    def _run_all(self, cases: Sequence[Case]) -> dict[str, dict[str, np.ndarray]]:
        backend = EagerBackend(self._module, self._signature)
        outputs = {}
        for case in cases:
            try:
                outputs[case.name] = backend.run(case.inputs)
            except Exception as err:  # The user's forward: whatever it raises is the reason.
                if case.optional:
                    self.refused[case.name] = f"{type(err).__name__}: {str(err)[:200]}"
                    continue
                raise RecipeError(
                    f"the model itself fails on {case.name!r}: {type(err).__name__}: {str(err)[:300]}: bound "
                    "the dimension (dims), or give the input's range (TensorSpec's low and high)"
                ) from err
        return outputs

    def _truths(self, cases: Sequence[Case]) -> tuple[str, dict[str, dict[str, np.ndarray]]]:
        truths = {}
        try:
            backend = EagerBackend(self._module, self._signature, double=True)
            for case in sorted(cases, key=lambda case: case.optional):
                try:
                    truths[case.name] = backend.run(case.inputs)
                except Exception as err:  # As in float32: the user's forward may refuse what is optional.
                    if not case.optional:
                        raise
                    self.refused[case.name] = f"in float64: {type(err).__name__}: {str(err)[:200]}"
        except Exception as err:  # Whatever keeps the user's forward from running in float64 is the reason.
            reason = str(err).splitlines()[0][:200] if str(err) else type(err).__name__
            return f"float32: the model does not run in float64 ({reason})", self._eager
        return "float64", truths

    def _others(self, cases: Sequence[Case]) -> list[dict[str, dict[str, np.ndarray]]]:
        """Outputs that eager's own error is measured against.

        They are the truth in float64. A model of float64 is also compared with itself, perturbed by the
        last place of its numbers. If the reference is float32, only the perturbed model counts.
        """
        others = [self._double] if self.kind == "float64" else []
        doubles = [n for n, spec in self._signature.outputs.items() if spec.dtype == "float64"]
        if self.kind != "float64" or doubles:
            others.append(self._perturbed(cases))
        return others

    def _perturbed(self, cases: Sequence[Case]) -> dict[str, dict[str, np.ndarray]]:
        backend = EagerBackend(perturbed_module(self._module), self._signature)
        return {
            case.name: backend.run(
                {
                    n: a * (1 + np.finfo(a.dtype).eps) if a.dtype.kind == "f" else a
                    for n, a in case.inputs.items()
                }
            )
            for case in cases
        }

    def _by_other_threads(self, samples: Sequence[Case]) -> list[dict[str, dict[str, np.ndarray]]]:
        """Eager's outputs by each number of threads in `THREADS`.

        Sums are taken in another order then: an error that is small by luck in one is not in all.
        """
        backend = EagerBackend(self._module, self._signature)
        found = []
        for count in THREADS:
            with torch_threads_kept(count):
                found.append({case.name: backend.run(case.inputs) for case in samples})
        return found

    def _measure(
        self,
        name: str,
        truth: np.ndarray,
        eager: np.ndarray,
        others: Sequence[np.ndarray],
        otherwise: Sequence[np.ndarray] = (),
    ) -> Truth:
        if eager.dtype.kind != "f":
            return Truth(truth, 0.0, 0.0, 0.0)
        finite = np.isfinite(eager) & np.isfinite(truth)
        value = np.where(np.isfinite(truth), truth, eager).astype(np.float64)
        eager_error = 0.0
        for other in others:
            finite &= np.isfinite(other)
            for one in (eager, *(o for o in otherwise if o.shape == eager.shape)):
                both = finite & np.isfinite(one)
                difference = np.abs(one[both].astype(np.float64) - other[both])
                eager_error = max(eager_error, float(difference.max(initial=0.0)))
        scale = max(float(np.abs(value[finite]).max(initial=0.0)), self._declared_scale(name))
        return Truth(value, eager_error, scale, self._bound(eager_error, scale, eager.dtype))

    def _bound_lucky_cases(self) -> None:
        """Widen the bound of cases on which eager's error is below its median.

        The median, relative to the output's scale, is used instead: a lucky case must not tighten the
        bound.
        """
        for name, spec in self._signature.outputs.items():
            if spec.numpy_dtype.kind != "f":
                continue
            truths = [by[name] for by in self._truth.values() if by[name].scale > 0]
            typical = float(np.median([t.eager_error / t.scale for t in truths])) if truths else 0.0
            for by in self._truth.values():
                error = max(by[name].eager_error, typical * by[name].scale)
                bound = self._bound(error, by[name].scale, spec.numpy_dtype)
                by[name] = replace(by[name], bound=max(by[name].bound, bound))

    def _bound(self, eager_error: float, scale: float, dtype: np.dtype[Any]) -> float:
        return error_bound(eager_error, scale, dtype)

    def _declared_scale(self, name: str) -> float:
        spec = self._signature.outputs[name]
        return 0.0 if spec.low is None or spec.high is None else max(abs(spec.low), abs(spec.high))

    def _bound_channels(
        self, samples: Sequence[Case], runs: Sequence[Mapping[str, Mapping[str, np.ndarray]]]
    ) -> None:
        """Give every sample's outputs their channels' bounds, from all samples' rows."""
        for name, spec in self._signature.outputs.items():
            if spec.numpy_dtype.kind != "f":
                continue
            for axis in sorted({1, len(spec.shape) - 1} & set(range(1, len(spec.shape)))):
                channels = spec.shape[axis]
                if not isinstance(channels, int) or channels < 2:
                    continue
                bounds = self._channel_bounds(name, axis, channels, samples, runs)
                if bounds is None:
                    continue
                for case in samples:
                    truths = self._truth[case.name]
                    known = {**truths[name].channel_bounds, axis: bounds}
                    truths[name] = replace(truths[name], channel_bounds=known)

    def _channel_bounds(
        self,
        name: str,
        axis: int,
        channels: int,
        samples: Sequence[Case],
        runs: Sequence[Mapping[str, Mapping[str, np.ndarray]]],
    ) -> np.ndarray | None:
        def together(of: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
            return np.concatenate(
                [np.moveaxis(of[case.name][name], axis, -1).reshape(-1, channels) for case in samples]
            )

        eager, others = together(self._eager), [together(of) for of in runs]
        if len(eager) < CHANNEL_ROWS or not all(np.isfinite(other).all() for other in others):
            return None
        computed = [eager, *(together(of) for of in self._otherwise)]
        error = np.max(
            [np.abs(one.astype(np.float64) - other).max(axis=0) for one in computed for other in others],
            axis=0,
        )
        scale = np.maximum(np.abs(others[0]).max(axis=0), self._declared_scale(name))
        return np.array([self._bound(e, s, eager.dtype) for e, s in zip(error, scale, strict=True)])


def error_bound(eager_error: float, scale: float, dtype: np.dtype[Any]) -> float:
    kind = np.finfo(dtype)
    return max(EAGER_MULTIPLE * eager_error, SCALE_EPSILONS * max(float(kind.eps) * scale, float(kind.tiny)))
