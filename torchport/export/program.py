"""torch.export: captures a model as a program with dynamic dimensions; saves it.

A failure raises `ExportError`, which names the operator or the line of the user's model, and what to
try.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import ExportError
from torchport.export.recurrent import recurrent_layers_as_loops
from torchport.export.traced_graph import TracedGraph
from torchport.export.traced_sizes import first_differing_trace, other_sizes
from torchport.model.half_precision import default_dtype, half_dtype, in_half
from torchport.model.parameters import with_parameters
from torchport.recipe.inputs import random_inputs
from torchport.recipe.user_code import line_in_trace, where_in_user_code
from torchport_runtime import Signature
from torchport_runtime.backends.backend import named_outputs

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def in_order(module: nn.Module, signature: Signature, inputs: Mapping[str, np.ndarray]) -> nn.Module:
    """The module with its outputs in the signature's order.

    A module that returns a dict or a named tuple is wrapped to return a tuple.
    """
    import torch
    from torch import nn

    with torch.no_grad():
        returned = module(*positional(inputs))
    if torch.is_tensor(returned) or type(returned) in (tuple, list):
        return module

    class Ordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            return tuple(named_outputs(self.model(*inputs), names).values())

    names = list(signature.outputs)
    with_parameters(Ordered.forward, signature.inputs)
    return Ordered().eval()


def export_program(graph: TracedGraph, precision: str = "float32") -> ExportedProgram:
    """torch.export with every symbolic dimension dynamic, its dimensions compared with the signature's.

    Raises:
        ExportError: torch.export cannot take the model, or a dimension came out fixed.
    """
    program = capture(graph, precision)
    try:
        _check_program(program, graph.signature)
    except ExportError as err:
        where = _where_fixed(program, graph, precision)
        if not where:
            raise
        raise ExportError(f"{where}: {err}") from err
    for part in program.graph_module.modules():
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program


def capture(graph: TracedGraph, precision: str = "float32") -> ExportedProgram:
    """Capture a model by torch.export at the sizes of `inputs`.

    Its operations carry the lines of the user's code, which are paths of this machine.

    Raises:
        ExportError: torch.export cannot take the model.
    """
    import torch
    from torch.export import Dim

    module, signature = graph.module, graph.signature
    dynamic: tuple[Any, ...] = tuple(
        {axis: Dim.AUTO for axis, size in enumerate(spec.shape) if is_dynamic(size, signature)}
        for spec in signature.inputs.values()
    )
    is_half = precision != "float32"
    if is_half:
        module = in_half(module, signature, precision)
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    if first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL:
        dynamic = (dynamic,)  # It takes *inputs, which count as one argument.
    own_dtype = default_dtype(half_dtype(precision) if is_half else None)
    # Dynamo compiles torch.cond and other control flow, and first asks the guards of what it compiled
    # before, for another model too. They then restrict the sizes of this program.
    torch.compiler.reset()
    try:
        with quiet(), recurrent_layers_as_loops(), own_dtype:
            return torch.export.export(module, positional(graph.inputs), dynamic_shapes=dynamic)
    except Exception as err:  # torch.export raises UserError, TorchRuntimeError, guards' and ops' own.
        raise ExportError(
            f"{where_in_user_code(err, graph.recipe)}: torch.export cannot take it: {gist(err)}: rewrite "
            "that line with torch operations (torch.where, torch.cond), or leave pt2 and onnxruntime "
            "out of the recipe's backends"
        ) from err


def _check_program(program: ExportedProgram, signature: Signature) -> None:
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    values = [placeholders[name].meta["val"] for name in program.graph_signature.user_inputs]
    check_dims("input", {n: list(v.shape) for n, v in zip(signature.inputs, values, strict=True)}, signature)
    returned = next(n for n in program.graph.nodes if n.op == "output").args[0]
    outputs = list(returned)[-len(signature.outputs) :]
    check_dims(
        "output",
        {n: list(v.meta["val"].shape) for n, v in zip(signature.outputs, outputs, strict=True)},
        signature,
    )


def _where_fixed(program: ExportedProgram, graph: TracedGraph, precision: str) -> str:
    """The user's line where captures at two sizes begin to differ; empty if unknown."""
    signature = graph.signature
    sizes = other_sizes(signature, signature.check_input_shapes(graph.inputs))
    if sizes is None:
        return ""
    try:
        other = capture(replace(graph, inputs=random_inputs(signature, sizes, seed=0)), precision)
    except ExportError:
        return ""
    return line_in_trace(first_differing_trace(program, other), graph.recipe)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's pages of notes on failed captures off the terminal.

    The error has the line.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def save_program(program: ExportedProgram) -> bytes:
    """The bytes of a `.pt2` file.

    They do not contain its name, as they would if it were saved to a path.

    Raises:
        ExportError: torch.export cannot serialise the program.
    """
    import torch

    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, buffer)
    except Exception as err:  # The serialiser raises NotImplementedError, AssertionError and its own.
        raise ExportError(f"torch.export cannot write it down: {gist(err)}") from err
    return buffer.getvalue()


def positional(inputs: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(array.copy()) for array in inputs.values())


def is_dynamic(size: int | str, signature: Signature) -> bool:
    """Whether a size is a name that stands for more than one number."""
    return isinstance(size, str) and signature.dims[size][0] != signature.dims[size][1]


def check_dims(role: str, shapes: Mapping[str, list[Any]], signature: Signature) -> None:
    """Check that symbolic dimensions stayed symbolic, and that no two became one.

    Raises:
        ExportError: a dimension is fixed, or not the signature's, or two must be equal.
    """
    specs = signature.inputs if role == "input" else signature.outputs
    names: dict[str, str] = {}
    for tensor, shape in shapes.items():
        want = specs[tensor].shape
        if len(shape) != len(want):
            raise ExportError(f"{role} {tensor!r} has shape {shape}, the signature says {list(want)}")
        for axis, (size, expected) in enumerate(zip(shape, want, strict=True)):
            fixed = isinstance(size, int) or str(size).isdigit()
            if is_dynamic(expected, signature):
                if fixed:
                    raise ExportError(
                        f"{role} {tensor!r}, axis {axis}: {expected!r} came out fixed at {size}: "
                        "something in forward fixes this size (a number taken from it, or a layer that the "
                        "exporter unrolls); use x.shape[...] where it is needed, put the number into the "
                        "signature, or leave this format out of the recipe's backends"
                    )
                if str(size).isidentifier() and names.setdefault(str(size), str(expected)) != expected:
                    raise ExportError(
                        f"{role} {tensor!r}: {expected!r} must equal {names[str(size)]!r}, says the "
                        "exporter: give both one name"
                    )
            elif fixed and isinstance(expected, int) and int(size) != expected:
                raise ExportError(f"{role} {tensor!r} has shape {shape}, the signature says {list(want)}")


def gist(err: BaseException) -> str:
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return f"{type(err).__name__}: {(lines[0] if lines else '')[:300]}"
