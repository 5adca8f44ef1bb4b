"""Compares each module's eager output with the ONNX graph's value for it.

    layers = layer_errors(module, signature, Path("main.onnx"), inputs, options)
    first_wrong(layers)                  # LayerError(module="layer1.0.bn1", kind="BatchNorm2d", ...)

The exporter writes into every node's metadata which module it came from, but not which value is a
module's output. The nearest value of the same shape is taken for it, so that no module is blamed if any
of its values is right. Modules that were folded into others have no values and are skipped.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import BackendError
from torchport.model.eager import EagerBackend, ModuleOutput
from torchport.verify.outputs.error_statistics import absolute_error
from torchport.verify.outputs.reference import error_bound
from torchport_runtime import BackendOptions, Signature

if TYPE_CHECKING:
    import onnx
    from torch import nn

_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPER = "model."
"""Prefix of module paths in the graph of a wrapped model. A wrapper fixes the order of the outputs."""


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """Error of one call of one module.

    `error` is the graph's distance from float64, `eager_error` that of float32, both in the max-norm.
    `bound` is the maximum error of a backend there. `operators` are those of the module's nodes.
    """

    module: str
    kind: str
    call: int
    value: str
    operators: tuple[str, ...]
    error: float
    eager_error: float
    bound: float

    def __str__(self) -> str:
        again = f", call {self.call}" if self.call > 1 else ""
        return f"{self.module} ({self.kind}{again}; {', '.join(self.operators)})"


@dataclass(frozen=True)
class _Value:
    """A value of the graph, and the operators of the module's nodes up to it."""

    name: str
    operators: tuple[str, ...]
    array: np.ndarray


def layer_errors(
    module: nn.Module,
    signature: Signature,
    path: Path,
    inputs: Mapping[str, np.ndarray],
    options: BackendOptions,
) -> list[LayerError]:
    """Errors of the module outputs that the graph has, in execution order.

    Raises:
        BackendError: the graph cannot be run with its inner values as outputs.
    """
    eager = EagerBackend(module, signature).run_watched(inputs)
    try:
        exact = EagerBackend(module, signature, double=True).run_watched(inputs)
    except Exception:  # The user's forward: what keeps it from float64 is in the certificate.
        exact = eager
    values = _values(path, inputs, options)
    known = {(e.path, e.call): e.value for e in exact}
    found = []
    for output in eager:
        truth = known.get((output.path, output.call))
        candidates = _candidates(output, values)
        if candidates and truth is not None and truth.shape == output.value.shape:
            found.append(_compare(output, truth, candidates))
    return found


def first_wrong(layers: Sequence[LayerError]) -> LayerError | None:
    """The first layer whose error exceeds its bound; None if no layer's does."""
    return next((layer for layer in layers if not layer.error <= layer.bound), None)


def _compare(output: ModuleOutput, truth: np.ndarray, candidates: Sequence[_Value]) -> LayerError:
    finite = np.isfinite(output.value) & np.isfinite(truth)
    expected = truth[finite].astype(np.float64)
    eager_error = float(absolute_error(output.value, truth, finite).max(initial=0.0))
    scale = float(np.abs(expected).max(initial=0.0))

    def distance(value: _Value) -> float:
        if not np.array_equal(np.isfinite(value.array), np.isfinite(output.value)):
            return np.inf
        return float(absolute_error(value.array, truth, finite).max(initial=0.0))

    errors = [distance(value) for value in candidates]
    error = min(errors)
    value = candidates[errors.index(error)]
    return LayerError(
        module=output.path or "(the model)",
        kind=output.kind,
        call=output.call,
        value=value.name,
        operators=value.operators,
        error=error,
        eager_error=eager_error,
        bound=error_bound(eager_error, scale, output.value.dtype),
    )


def _candidates(output: ModuleOutput, values: Mapping[str, list[_Value]]) -> list[_Value]:
    """The values of a module's nodes that could be its output."""
    if output.value.dtype.kind != "f":
        return []
    return [
        value
        for value in values.get(output.path) or values.get(_WRAPPER + output.path, [])
        if value.array.shape == output.value.shape and value.array.dtype == output.value.dtype
    ]


def _values(path: Path, inputs: Mapping[str, np.ndarray], options: BackendOptions) -> dict[str, list[_Value]]:
    """Values of the graph's nodes, by each module that contains the node."""
    import onnx

    proto = onnx.load(path)
    nodes = [node for node in proto.graph.node if any(node.output)]
    names = [name for node in nodes for name in node.output if name]
    arrays = inner_values(proto, names, inputs, options)
    found: dict[str, list[_Value]] = {}
    operators: dict[str, list[str]] = {}
    for node in nodes:
        for module in _modules(node):
            kinds = operators.setdefault(module, [])
            if node.op_type not in kinds:
                kinds.append(node.op_type)
            found.setdefault(module, []).extend(
                _Value(name, tuple(kinds), arrays[name]) for name in node.output if name in arrays
            )
    return found


def _modules(node: onnx.NodeProto) -> list[str]:
    """Paths of the modules that contain a node, the model itself first."""
    text = next((p.value for p in node.metadata_props if p.key == _SCOPES), "[]")
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    # The last is the node's own name.
    return [scope for scope in scopes[:-1] if isinstance(scope, str)] if isinstance(scopes, list) else []


def inner_values(
    proto: onnx.ModelProto, names: Sequence[str], inputs: Mapping[str, np.ndarray], options: BackendOptions
) -> dict[str, np.ndarray]:
    """Compute inner values of an ONNX graph, by name.

    They become outputs of `proto`.

    Raises:
        BackendError: ONNX Runtime does not load the changed graph, or fails.
    """
    import onnx
    import onnxruntime

    outputs = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # What goes wrong is raised.
    settings.intra_op_num_threads = options.thread_count
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        values: list[Any] = session.run(list(names), dict(inputs))
    except Exception as err:  # ONNX Runtime's errors have no base class of their own.
        raise BackendError(f"the graph's inner values cannot be had: {str(err)[:300]}") from err
    return {n: v for n, v in zip(names, values, strict=True) if isinstance(v, np.ndarray)}
