"""Finds ONNX nodes whose ONNX Runtime kernel hides NaN and Inf.

    kernels_that_hide(Path("main.onnx"), {"x": np.full((1, 5, 8), np.nan, np.float32)}, "logits", options)
    # ["GRU node_gru"]

Such kernels give finite numbers for them. The kernels of GRU and LSTM do: they clip their gates to a
range first, and clipping loses NaN. The maximum over a window does: it passes over NaN next to other
numbers. If a graph gives finite numbers for NaN without such a node, or before one, it computes
something else than the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchport.verify.outputs.layer_errors import inner_values
from torchport_runtime import BackendOptions

if TYPE_CHECKING:
    import onnx

HIDING = ("GRU", "LSTM", "MaxPool", "GlobalMaxPool", "ThresholdedRelu")
"""Operators whose CPU kernel in ONNX Runtime hides NaN. Each was run by itself; PyTorch's keep NaN. Other
operators that were run keep it: convolutions, products, sums, norms, activations, maxima over an axis."""


def kernels_that_hide(
    path: Path, inputs: Mapping[str, np.ndarray], output: str, options: BackendOptions
) -> list[str]:
    """Nodes of `HIDING` above an output that turn non-finite values into finite ones.

    `inputs` are the graph's.

    Raises:
        BackendError: the graph's inner values cannot be computed.
    """
    import onnx

    proto = onnx.load(path)
    nodes = [node for node in _nodes_above(proto.graph, output) if node.op_type in HIDING]
    if not nodes:
        return []
    given = {node.input[0] for node in nodes}
    names = sorted({name for node in nodes for name in node.output if name} | (given - set(inputs)))
    values = {**inputs, **inner_values(proto, names, inputs, options)}
    return [
        f"{node.op_type} {node.name}".strip()
        for node in nodes
        if not np.isfinite(values[node.input[0]]).all()
        and any(np.isfinite(values[name]).any() for name in node.output if name)
    ]


def _nodes_above(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """Nodes that an output depends on, including those in branches and loops."""
    wanted, above = {output}, []
    for node in reversed(graph.node):  # In the order of execution, as ONNX has it.
        if wanted.intersection(node.output):
            above.append(node)
            wanted |= set(_read_by(node))
    return above[::-1]


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for one in inner.node:
                yield from _read_by(one)
            yield from (value.name for value in inner.output)
