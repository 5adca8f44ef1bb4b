"""Makes INT8 versions of a model, and measures them on held-out examples.

bench = Workbench(recipe, folder, gate, work=Path("work"))
candidate = bench.candidate("minmax")
candidate.problems                   # why it does not pass the gate; empty if it does
candidate = bench.candidate("minmax", exclude=bench.layers_by_error("minmax")[:3])
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from torchport.errors import QuantizationError
from torchport.optimize.quantize.calibration import Calibration
from torchport.optimize.quantize.graphs import Arithmetic, Int8Graph
from torchport.optimize.quantize.heldout import Agreement, HeldOut, interleaved_seconds
from torchport.recipe.contract import Recipe
from torchport.recipe.gate import Gate
from torchport.recipe.handler import handler_class
from torchport.recipe.loading import find_handler
from torchport.recipe.user_code import running
from torchport.recipe.variants import INT8, backend_options, variant_options
from torchport.store.folders import BuildFolder
from torchport_runtime import BackendOptions, Handler
from torchport_runtime.backends.backend import open_backend
from torchport_runtime.options import INT8_SUFFIX

Layer = tuple[str, str]
"""The name of a graph and that of one of its layers."""

QUICK_ROUNDS, FULL_ROUNDS = 3, 15
QUICK_SECONDS, FULL_SECONDS = 1.0, 4.0

HOPELESS = 0.5
"""Minimum speed-up over float32 at which metrics are measured. A slower candidate fails without them."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One INT8 version of the model and its measurements.

    Args:
        method: how its ranges were found, one of `METHODS`.
        excluded: the excluded nodes, which stay in float32, worst first.
        folder: the folder of its graphs.
        size: their size together, bytes.
        metrics: held-out metrics; empty if it is much too slow.
        problems: why it does not pass the gate.
        drop: drop of the metric that lost most; infinite if metrics were not measured.
        speed: its throughput as a multiple of float32's.
        quick: whether it was measured in few rounds, enough to tell a slow one.
    """

    method: str
    excluded: tuple[Layer, ...]
    folder: Path
    size: int
    metrics: dict[str, float]
    agreement: Agreement
    problems: list[str] = field(default_factory=list)
    drop: float = math.inf
    speed: float
    quick: bool = True

    def contents(self) -> dict[str, bytes]:
        """The graphs' bytes by file name."""
        return {path.name: path.read_bytes() for path in sorted(self.folder.glob(f"*{INT8_SUFFIX}"))}


class Workbench:
    """Makes and measures the candidates of one model.

    Raises:
        RecipeError: no held-out examples, no calibration inputs, or the recipe's code fails.
        QuantizationError: the graphs cannot be prepared.
    """

    def __init__(self, recipe: Recipe, folder: BuildFolder, gate: Gate, *, work: Path) -> None:
        self._recipe, self._build, self._gate, self._work = recipe, folder.path, gate, work
        self.arithmetic = Arithmetic.of_this_machine()
        self.examples = HeldOut(recipe, batch_size=recipe.serving.batch_size)
        self._float32 = self._open(folder.path, backend_options(recipe, "onnxruntime", "cpu"))
        self.calibration = Calibration.of(recipe, folder, self.examples.row_digests(self._float32))
        self.before = self.examples.measure(self._float32)
        self._batches = self.examples.batches(self._float32)
        self._signatures = recipe.signatures()
        self._graphs = {
            name: Int8Graph(name, folder.path / f"{name}.onnx", work=work, arithmetic=self.arithmetic)
            for name in self._signatures
        }
        self._calibrated: set[str] = set()
        self._made = 0

    @property
    def layers(self) -> list[Layer]:
        """All nodes that can be excluded, that is left in float32."""
        return [(name, layer) for name, graph in self._graphs.items() for layer in graph.layers]

    @property
    def batch_seconds(self) -> float:
        """Median seconds of a batch in float32."""
        taken = interleaved_seconds({"float32": self._float32}, self._batches, rounds=FULL_ROUNDS)
        return taken["float32"] / len(self._batches)

    def candidate(self, method: str, exclude: Sequence[Layer] = ()) -> Candidate:
        """Make a candidate and measure it; the nodes in `exclude` are excluded.

        Raises:
            QuantizationError: ONNX Runtime cannot make it, or a client could spoil others' answers with it.
        """
        if method == "dynamic":
            self._refuse_strange_mates()
        self._calibrate(method)
        self._made += 1
        folder = self._work / f"candidate-{self._made}"
        folder.mkdir()
        (folder / "signature.json").write_bytes((self._build / "signature.json").read_bytes())
        os.symlink((self._build / "assets").resolve(), folder / "assets", target_is_directory=True)
        size = 0
        for name, graph in self._graphs.items():
            content = graph.quantized(method, exclude=[layer for of, layer in exclude if of == name])
            size += len(content)
            (folder / f"{name}{INT8_SUFFIX}").write_bytes(content)
        handler = self._open(folder, variant_options(self._recipe, INT8, "cpu"))
        both = {"float32": self._float32, "int8": handler}
        taken = interleaved_seconds(both, self._batches[:1], rounds=1, at_least=QUICK_SECONDS)
        if taken["float32"] < HOPELESS * taken["int8"]:
            speed = taken["float32"] / taken["int8"]
            return Candidate(
                method=method,
                excluded=tuple(exclude),
                folder=folder,
                size=size,
                metrics={},
                agreement=Agreement(0, 0),
                problems=[f"it has {speed:.2f} times float32's throughput: its metrics were not asked for"],
                speed=speed,
            )
        measured = self.examples.measure(handler)
        metrics = measured.metrics
        if method == "dynamic":
            # Who shares a batch with whom, and how many do, is another question each time.
            others = self.examples.measure(handler, shuffled=True)
            metrics = self._gate.worst([metrics, others.metrics])
        taken = interleaved_seconds(both, self._batches, rounds=QUICK_ROUNDS, at_least=QUICK_SECONDS)
        return Candidate(
            method=method,
            excluded=tuple(exclude),
            folder=folder,
            size=size,
            metrics=metrics,
            agreement=self.before.agreement(measured),
            problems=self._gate.broken(self.before.metrics, metrics),
            drop=self._gate.largest_drop(self.before.metrics, metrics),
            speed=taken["float32"] / taken["int8"],
        )

    def speeds(self, candidates: Sequence[Candidate]) -> list[float]:
        """Throughputs as multiples of float32's, measured thoroughly and side by side."""
        handlers = {
            str(i): self._open(c.folder, variant_options(self._recipe, INT8, "cpu"))
            for i, c in enumerate(candidates)
        }
        taken = interleaved_seconds(
            {"float32": self._float32, **handlers}, self._batches, rounds=FULL_ROUNDS, at_least=FULL_SECONDS
        )
        return [taken["float32"] / taken[str(index)] for index in range(len(candidates))]

    def layers_by_error(self, method: str) -> list[Layer]:
        """All layers, those with the largest error in INT8 first.

        The error is that of the graph's outputs when the layer alone is in INT8.
        """
        self._calibrate(method)
        errors: dict[Layer, float] = {}
        for name, graph in self._graphs.items():
            signature = self._signatures[name]
            inputs = next(self.calibration.pieces(name))
            expected = self._float32.backends[name].run(inputs)
            alone = self._work / f"{name}.alone{INT8_SUFFIX}"
            for layer in graph.layers:
                alone.write_bytes(graph.quantized(method, only=[layer]))
                got = open_backend(alone, signature, variant_options(self._recipe, INT8, "cpu")).run(inputs)
                errors[name, layer] = sum(relative_error(got[key], expected[key]) for key in expected)
        return sorted(errors, key=lambda layer: -errors[layer])

    def _refuse_strange_mates(self) -> None:
        """Refuse a graph in which one row can spoil other rows' answers.

        In dynamic quantisation, the ranges of a batch are also those of one row in it. If an input has
        no bounds, one large number leaves the answers of others no digits. The served batch size is not
        looked at, because a tuning or an operator decides it later.
        """
        unbounded = [
            name
            for signature in self._signatures.values()
            if signature.batch_dim is not None
            for name, spec in signature.inputs.items()
            if spec.numpy_dtype.kind == "f" and (spec.low is None or spec.high is None)
        ]
        if unbounded:
            raise QuantizationError(
                "one request's numbers would decide how exact the answers of its batch mates are, and input "
                f"{unbounded[0]!r} has no bounds: give its TensorSpec low and high"
            )

    def _calibrate(self, method: str) -> None:
        if method not in self._calibrated:
            for name, graph in self._graphs.items():
                graph.calibrate(method, self.calibration.pieces(name))
            self._calibrated.add(method)

    def _open(self, folder: Path, options: BackendOptions) -> Handler:
        path, settings = find_handler(self._recipe), dict(self._recipe.handler_options)
        with running(path, "setup"):
            handler = handler_class(path)()
        handler.load(folder, options, settings)
        return handler


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference, divided by the RMS of the expected values.

    For values that are no floats, or of another shape: 1 if they differ, else 0.
    """
    if expected.dtype.kind != "f" or got.shape != expected.shape or not expected.size:
        return float(not np.array_equal(got, expected))
    finite = np.isfinite(expected)
    difference = np.where(finite, got.astype(np.float64) - np.where(finite, expected, 0), 0)
    scale = float(np.sqrt(np.mean(np.square(expected[finite].astype(np.float64))))) or 1.0
    return float(np.sqrt(np.mean(np.square(difference)))) / scale
