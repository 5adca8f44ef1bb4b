"""Quantises one exported graph to INT8 by ONNX Runtime.

    graph = Int8Graph("main", Path("main.onnx"), work=Path("work"), arithmetic=Arithmetic.of_this_machine())
    graph.calibrate("entropy", batches)
    content = graph.quantized("entropy", exclude={"node_Conv_58"})    # the bytes of main.int8.onnx

Static quantisation is QDQ with weights per channel; its ranges are measured on calibration inputs.
Dynamic quantisation measures ranges anew in every run.
"""

from __future__ import annotations

import io
import logging
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchport.errors import QuantizationError

METHODS = {
    "minmax": "static, from least to greatest",
    "entropy": "static, ranges that lose the least information",
    "percentile": "static, ranges without the outermost 0.001%",
    "dynamic": "dynamic, ranges of each run's own batch",
}
"""Ways to find an activation's range, by their names in the certificate."""

LAYERS = frozenset(
    (
        *("Conv", "ConvTranspose", "Gemm", "LSTM", "MatMul", "Add", "Mul", "Where", "Concat", "Resize"),
        *("Gather", "GatherElements", "BatchNormalization", "InstanceNormalization", "LayerNormalization"),
        *("LeakyRelu", "Sigmoid", "Softmax"),
    )
)
"""Operators that lose precision themselves in INT8. Others (Relu, MaxPool) pass on what they get."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """The integer types that suit a processor.

    Args:
        signed_activations: whether activations are int8, as ARM's instructions take them; uint8 on x86.
        reduce_range: whether weights have 7 bits. Without VNNI, x86 adds two products of 8 bits in 16, which
            overflow.
    """

    signed_activations: bool
    reduce_range: bool

    @classmethod
    def of_this_machine(cls) -> Arithmetic:
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        return cls(signed_activations=not x86, reduce_range=x86 and not _has_vnni())

    def to_json(self) -> dict[str, bool]:
        return asdict(self)


def _has_vnni() -> bool:
    """Whether the processor has VNNI; False if it cannot be asked."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_vnni" in text or "avx_vnni" in text


class Int8Graph:
    """One graph of a model, prepared once, quantised any number of times.

    Raises:
        QuantizationError: a library is missing, or ONNX Runtime cannot prepare the graph.
    """

    def __init__(self, name: str, path: Path, *, work: Path, arithmetic: Arithmetic) -> None:
        try:
            import onnx
            from onnxruntime.quantization import quant_pre_process
        except ImportError as err:
            raise QuantizationError(f"quantising needs {err.name}: pip install 'torchport[train]'") from err
        self.name, self._arithmetic, self._work = name, arithmetic, work
        self._prepared = work / f"{name}.prepared.onnx"
        try:
            # ONNX's own inference of shapes is enough; the symbolic one needs sympy.
            with _quiet():
                quant_pre_process(path, self._prepared, skip_symbolic_shape=True)
            model = onnx.load(self._prepared)
        except Exception as err:  # ONNX Runtime's and ONNX's exceptions have no common base class.
            raise QuantizationError(f"{path.name}: ONNX Runtime cannot prepare it: {err}") from err
        for index, node in enumerate(model.graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
        onnx.save(model, self._prepared)
        self.layers = [node.name for node in model.graph.node if node.op_type in LAYERS]

    def calibrate(self, method: str, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Measure the range of every activation on these inputs, batch by batch.

        It is called once for each method. Dynamic quantisation needs no calibration.

        Raises:
            QuantizationError: the graph fails on them.
        """
        if method == "dynamic":
            return
        from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

        try:
            with _quiet():
                calibrator = create_calibrator(
                    self._prepared,
                    augmented_model_path=str(self._work / f"{self.name}.{method}.augmented.onnx"),
                    calibrate_method=_calibration(method),
                    extra_options=_HISTOGRAM.get(method, {}),
                )
                for batch in batches:
                    # All activations of a batch are in memory until their ranges are known: one at a time.
                    calibrator.collect_data(_Batches([dict(batch)]))
                save_tensors_data(calibrator.compute_data(), self._ranges(method))
        except Exception as err:  # As above; the calibrators raise plain ValueErrors, too.
            raise QuantizationError(f"{self.name}.onnx: calibration by {method} failed: {err}") from err

    def quantized(
        self, method: str, *, exclude: Collection[str] = (), only: Collection[str] | None = None
    ) -> bytes:
        """The graph's bytes in INT8, without the excluded nodes in `exclude`.

        With `only`, all other nodes stay in float32 too.

        Raises:
            QuantizationError: ONNX Runtime cannot quantise it.
        """
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

        target = self._work / f"{self.name}.{method}.onnx"
        shared: dict[str, Any] = {
            "per_channel": True,
            "reduce_range": self._arithmetic.reduce_range,
            "weight_type": QuantType.QInt8,
            "nodes_to_exclude": sorted(exclude),
            "nodes_to_quantize": sorted(only) if only is not None else None,
        }
        signed = self._arithmetic.signed_activations
        try:
            with _quiet():
                if method == "dynamic":
                    quantize_dynamic(self._prepared, target, **shared)
                else:
                    quantize_static(
                        self._prepared,
                        target,
                        quant_format=QuantFormat.QDQ,
                        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
                        calibrate_method=_calibration(method),
                        calibration_cache_path=self._ranges(method),
                        **shared,
                    )
            return target.read_bytes()
        except Exception as err:  # As above.
            raise QuantizationError(
                f"{self.name}.onnx: ONNX Runtime cannot quantise it ({method}): {err}"
            ) from err

    def _ranges(self, method: str) -> Path:
        return self._work / f"{self.name}.{method}.json"


_HISTOGRAM = {"entropy": {"num_bins": 2048}}
"""Extra options of a method's calibrator. ONNX Runtime's own number of bins is that of the integers, so
that no range could lose any."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep prints and logs of ONNX Runtime's tools off the terminal."""
    root, silent = logging.getLogger(), logging.NullHandler()
    before = logging.root.manager.disable
    root.addHandler(silent)  # With none there, `logging.warning` would install one for good.
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        root.removeHandler(silent)


def _calibration(method: str) -> Any:
    from onnxruntime.quantization import CalibrationMethod

    return {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[method]


class _Batches:
    """Reader for ONNX Runtime's calibrators: one batch after another, then None."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)
