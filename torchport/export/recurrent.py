"""Exports GRU, LSTM and RNN layers as loops of any length.

    with recurrent_layers_as_loops():
        program = torch.export.export(model, inputs, dynamic_shapes=...)

torch computes a recurrent layer's shapes by unrolling it. This fixes the length that it was traced
with, for every operator that has the same dimension. A `while_loop` has no length of its own. torch
2.11 and newer have such loops for GRU and LSTM, in a private module; the loops here work with every
release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

State = tuple["Tensor", ...]
Cell = Callable[["Tensor", State, Sequence["Tensor | None"]], State]
"""One step: gates of the input [1, batch, gates], the state and the recurrent weights give the next state."""


@contextmanager
def recurrent_layers_as_loops() -> Iterator[None]:
    """Make torch capture and decompose recurrent layers as loops of symbolic length.

    Both the capture and the conversion to ONNX need it: the conversion computes all shapes once more.
    """
    import torch

    operators: dict[Any, Callable[..., Any]] = {
        torch.ops.aten.gru.input: partial(_without_cell_state, cell=_gru_cell),
        torch.ops.aten.lstm.input: _lstm,
        torch.ops.aten.rnn_tanh.input: partial(_without_cell_state, cell=partial(_rnn_cell, torch.tanh)),
        torch.ops.aten.rnn_relu.input: partial(_without_cell_state, cell=partial(_rnn_cell, torch.relu)),
    }
    with ExitStack() as stack:
        for operator, loop in operators.items():
            stack.enter_context(_decomposed_by(operator, loop))
        yield


@contextmanager
def _decomposed_by(operator: Any, loop: Callable[..., Any]) -> Iterator[None]:
    """Decompose an operator by the function `loop`."""
    import torch

    # Which of the two is asked depends on who computes shapes: the capture, or the conversion of a program.
    tables: tuple[tuple[dict[Any, Any], Any], ...] = (
        (operator.py_kernels, torch._C.DispatchKey.CompositeImplicitAutograd),
        (torch._decomp.decomposition_table, operator),
    )
    before = [table.get(key) for table, key in tables]
    for table, key in tables:
        table[key] = loop
    # Operators remember the kernel they were first called with, in this process, for good.
    operator._dispatch_cache.clear()
    try:
        yield
    finally:
        for (table, key), was in zip(tables, before, strict=True):
            if was is None:
                del table[key]
            else:
                table[key] = was
        operator._dispatch_cache.clear()


class _Settings(NamedTuple):
    """The arguments of `aten::gru.input`, `lstm.input` and `rnn_tanh.input` after the weights."""

    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool


def _without_cell_state(
    x: Tensor, h0: Tensor, params: Sequence[Tensor], *settings: Any, cell: Cell
) -> tuple[Tensor, Tensor]:
    """A GRU or RNN layer stack, with the arguments of `aten::gru.input`.

    Returns all outputs [time, batch, hidden], and the last of each layer and direction.
    """
    output, (h_n,) = _layers(x, (h0,), params, _Settings(*settings), cell)
    return output, h_n


def _lstm(
    x: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM layer stack, with the arguments of `aten::lstm.input`.

    With projections each direction has one more weight.
    """
    output, (h_n, c_n) = _layers(x, tuple(states), params, _Settings(*settings), _lstm_cell)
    return output, h_n, c_n


def _layers(
    x: Tensor, initial: State, params: Sequence[Tensor], settings: _Settings, cell: Cell
) -> tuple[Tensor, State]:
    """All layers and directions: outputs [time, batch, hidden] and the last states, stacked."""
    import torch

    has_biases, num_layers, dropout, train, bidirectional, batch_first = settings
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    current = x.transpose(0, 1) if batch_first else x
    last: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            weights = params[index * each : (index + 1) * each]
            state = tuple(part[index] for part in initial)
            output, state = _steps(current, state, weights, has_biases, reverse=direction == 1, cell=cell)
            outputs.append(output)
            last.append(state)
        current = torch.cat(outputs, -1) if directions > 1 else outputs[0]
        if dropout and train and layer < num_layers - 1:
            current = torch.dropout(current, dropout, train=True)
    final = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return current.transpose(0, 1) if batch_first else current, final


def _steps(
    x: Tensor, state: State, weights: Sequence[Tensor], has_biases: bool, *, reverse: bool, cell: Cell
) -> tuple[Tensor, State]:
    """Run one layer in one direction. Returns outputs [time, batch, hidden] and the last state."""
    import torch
    from torch._higher_order_ops.while_loop import while_loop_op

    w_ih, w_hh, *others = weights
    b_ih, b_hh = others[:2] if has_biases else (None, None)
    w_hr = others[2 if has_biases else 0] if len(others) > (2 if has_biases else 0) else None
    gates = torch.nn.functional.linear(x, w_ih, b_ih)
    gates = gates.flip(0) if reverse else gates
    # A loop refuses weights that share memory, as parts of one flat buffer do.
    recurrent = tuple(None if weight is None else weight.clone() for weight in (w_hh, b_hh, w_hr))
    output = gates.new_zeros(gates.size(0), *state[0].shape)

    start, initial = torch.zeros((), dtype=torch.int64), tuple(part.clone() for part in state)
    constants = (gates, *(weight for weight in recurrent if weight is not None))

    def has_next(step: Tensor, output: Tensor, *others: Tensor) -> Tensor:
        return step < output.size(0)

    def advance(step: Tensor, output: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        state, (gates, *present) = others[: len(initial)], others[len(initial) :]
        index, weight_of_loop = step.unsqueeze(0), iter(present)
        new = cell(
            gates.index_select(0, index).squeeze(0),
            state,
            [None if weight is None else next(weight_of_loop) for weight in recurrent],
        )
        return (step + 1, output.index_copy(0, index, new[0].unsqueeze(0)), *new)

    # while_loop would have dynamo compile the loop. Dynamo asks the guards of the loops that it has compiled
    # before first, and they then restrict the sizes of this program.
    _, output, *last = while_loop_op(has_next, advance, (start, output, *initial), constants)  # type: ignore[arg-type]
    return output.flip(0) if reverse else output, tuple(last)


def _gru_cell(gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """One GRU step as `torch.nn.GRU` documents it.

    The gates are reset, update and new.
    """
    import torch

    (hidden,), (w_hh, b_hh, _) = state, weights
    assert w_hh is not None
    reset, update, new = gates.chunk(3, -1)
    h_reset, h_update, h_new = torch.nn.functional.linear(hidden, w_hh, b_hh).chunk(3, -1)
    reset, update = (reset + h_reset).sigmoid(), (update + h_update).sigmoid()
    new = (new + reset * h_new).tanh()
    return ((hidden - new) * update + new,)


def _lstm_cell(gates: Tensor, state: State, weights: Sequence[Tensor | None]) -> State:
    """One LSTM step as `torch.nn.LSTM` documents it.

    The gates are input, forget, cell and output.
    """
    import torch

    (hidden, memory), (w_hh, b_hh, w_hr) = state, weights
    assert w_hh is not None
    let_in, forget, new, out = (gates + torch.nn.functional.linear(hidden, w_hh, b_hh)).chunk(4, -1)
    memory = forget.sigmoid() * memory + let_in.sigmoid() * new.tanh()
    hidden = out.sigmoid() * memory.tanh()
    return (hidden if w_hr is None else torch.nn.functional.linear(hidden, w_hr), memory)


def _rnn_cell(
    nonlinearity: Callable[[Tensor], Tensor], gates: Tensor, state: State, weights: Sequence[Tensor | None]
) -> State:
    """One RNN step as `torch.nn.RNN` documents it."""
    import torch

    (hidden,), (w_hh, b_hh, _) = state, weights
    assert w_hh is not None
    return (nonlinearity(gates + torch.nn.functional.linear(hidden, w_hh, b_hh)),)
