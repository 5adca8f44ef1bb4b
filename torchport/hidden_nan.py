"""Nodes of an ONNX graph in which ONNX Runtime's own kernel turns NaN and Inf into finite numbers.

    kernels_that_hide(Path("main.onnx"), {"x": np.full((1, 5, 8), np.nan, np.float32)}, options)
    # ["GRU node_gru"]

Its GRU and LSTM do: their gates are cut off to a range first, and cutting off loses NaN. So does its
maximum over a window, which passes over NaN beside other numbers. A graph that gives finite numbers for NaN
without such a node, or before one, is another computation than the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from torchport.layer_errors import inner_values
from torchport_runtime import BackendOptions

HIDING = ("GRU", "LSTM", "MaxPool", "GlobalMaxPool", "ThresholdedRelu")
"""Operators whose kernels do, each run by itself on the CPU; those of PyTorch keep NaN. Others
that were run keep it: convolutions, products, sums, norms, activations, maxima over an axis."""


def kernels_that_hide(path: Path, inputs: Mapping[str, np.ndarray], options: BackendOptions) -> list[str]:
    """The nodes of `HIDING` that, for these inputs of the graph, turn what is not finite into what is.

    Raises:
        BackendError: the graph's inner values cannot be had.
    """
    import onnx

    proto = onnx.load(path)
    nodes = [node for node in proto.graph.node if node.op_type in HIDING]
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
