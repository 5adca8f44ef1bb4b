"""GRU and LSTM of any length in torch.export programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def recurrent_layers_as_loops() -> Iterator[None]:
    """Let torch see recurrent layers as loops, where it can: unrolled, their length would be fixed.

    torch.onnx does the same for its own captures; torch.export leaves it to its callers.
    """
    try:
        from torch.export._patches import (
            register_gru_while_loop_decomposition,
            register_lstm_while_loop_decomposition,
        )
    except ImportError:  # Not in every version of torch; a length that comes out fixed is refused.
        yield
        return
    import torch

    operators = (torch.ops.aten.gru.input, torch.ops.aten.lstm.input)
    try:
        with register_gru_while_loop_decomposition(), register_lstm_while_loop_decomposition():
            # Operators remember the kernel they were first called with, in this process, for good.
            for operator in operators:
                operator._dispatch_cache.clear()
            yield
    finally:
        for operator in operators:
            operator._dispatch_cache.clear()
