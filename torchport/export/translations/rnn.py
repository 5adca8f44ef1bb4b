"""Translates `aten::rnn_tanh` and `aten::rnn_relu` to ONNX's `RNN`.

    torch.onnx.export(program, custom_translation_table=rnn_translations())

torch's exporter has no translation for them. It writes a `Loop` that copies all outputs in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def rnn_translations() -> dict[Any, Callable[..., Any]]:
    """Translations by operator, as `torch.onnx.export` takes them."""
    import torch

    return {
        torch.ops.aten.rnn_tanh.input: _rnn("Tanh"),
        torch.ops.aten.rnn_relu.input: _rnn("Relu"),
    }


def _rnn(activation: str) -> Callable[..., Any]:
    from onnxscript import opset18

    op: Any = opset18  # Its annotations know tensors alone, where the exporter takes numbers, too.

    def translate(
        input: Any,
        hx: Any,
        params: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        """Inputs as `aten::rnn_tanh.input` has them; outputs [time, batch, directions * hidden], h_n."""
        directions = 2 if bidirectional else 1
        each = 4 if has_biases else 2
        hidden_size = int(params[1].shape[1])
        current = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        last = []
        for layer in range(num_layers):
            start = layer * directions
            ours = [params[(start + d) * each : (start + d + 1) * each] for d in range(directions)]
            weights = [op.Concat(*(op.Unsqueeze(p[i], [0]) for p in ours), axis=0) for i in (0, 1)]
            bias = None
            if has_biases:
                both = [op.Concat(p[2], p[3], axis=0) for p in ours]
                bias = op.Concat(*(op.Unsqueeze(b, [0]) for b in both), axis=0)
            outputs, h_n = op.RNN(
                current,
                *weights,
                bias,
                None,
                op.Slice(hx, [start], [start + directions], [0]),
                hidden_size=hidden_size,
                direction="bidirectional" if bidirectional else "forward",
                activations=[activation] * directions,
            )
            # [time, directions, batch, hidden] to [time, batch, directions * hidden]
            outputs = op.Transpose(outputs, perm=[0, 2, 1, 3])
            current = op.Reshape(outputs, [0, 0, directions * hidden_size])
            last.append(h_n)
        if batch_first:
            current = op.Transpose(current, perm=[1, 0, 2])
        return current, op.Concat(*last, axis=0)

    return translate
