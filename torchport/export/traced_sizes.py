"""Finds what an export took from its traced sizes.

    sizes = other_sizes(signature, {"batch": 2, "time": 13})     # {"batch": 5, "time": 16}
    first_difference(main_onnx, onnx_of_a_capture_at_those_sizes)
    # Difference(node="bitwise_or", operator="Or", what="takes a constant bool[1, 13] and ...", ...)

A size that forward reads as a number, or a shape that a converter assumes, becomes a number in the
graph. Such a graph is right at the traced sizes only. Two graphs of one model that were traced at
different sizes have different numbers there, and are equal everywhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport_runtime import Signature

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

STEP = 3
"""Minimum distance of sizes from those of the first trace. It is smaller if the signature has no room."""

SHOWN = 8
"""Maximum values of a constant in a message. A larger one is described by its shape."""

_TRACE_KEY = "stack_trace"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two graphs differ.

    `trace` is the stack in the user's code, or empty.
    """

    node: str
    operator: str
    what: str
    trace: str


@dataclass(frozen=True)
class _Constant:
    dtype: str
    shape: tuple[int, ...]
    digest: str
    values: str


def other_sizes(
    signature: Signature,
    traced: Mapping[str, int],
    admits: Callable[[dict[str, int]], bool] = lambda sizes: True,
) -> dict[str, int] | None:
    """Sizes for a second trace, different from the first where dimensions allow.

    None if `admits` takes no such sizes, so that nothing can be compared.
    """
    for step in (STEP, STEP + 1, STEP + 2):
        sizes: dict[str, int] = {}
        for symbol, was in traced.items():  # Sizes that outputs alone have follow from these.
            low, high = signature.dims[symbol]
            further, next_ones = range(was + step, high + 1), range(was + 1, high + 1)
            smaller = range(was - 1, max(low, 2) - 1, -1)
            taken = {*sizes.values(), *traced.values()}
            choices = chain(further, next_ones, smaller)
            sizes[symbol] = next((size for size in choices if size not in taken), was)
        if sizes != dict(traced) and admits(sizes):
            return sizes
    return None


def first_differing_trace(first: ExportedProgram, second: ExportedProgram) -> str:
    """The stack trace of the first operation in which two captured programs differ.

    Empty if they are equal.
    """
    for mine, other in zip_longest(_calls(first), _calls(second)):
        if mine is None or other is None or _numbers(mine) != _numbers(other):
            node = other if mine is None else mine
            return str(node.meta.get(_TRACE_KEY) or "")
    return ""


def same_answers(first: bytes, second: bytes, inputs: Mapping[str, np.ndarray]) -> bool:
    """Whether two ONNX graphs give the same outputs and shapes, except for rounding.

    `inputs` have the sizes that the second was traced with. If it fails on them, nothing can be told, and the
    answer is True: parity judges the first.
    """
    expected, got = _outputs(second, inputs), _outputs(first, inputs)
    if expected is None:
        return True
    return got is not None and all(map(_alike, got, expected))


def _outputs(content: bytes, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    """A graph's outputs by ONNX Runtime; None if it does not load or run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # A graph that fails is what this asks for.
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        outputs: list[np.ndarray] = session.run(None, dict(inputs))
    except Exception:  # ONNX Runtime's errors have no common base class.
        return None
    return outputs


def _alike(got: np.ndarray, expected: np.ndarray) -> bool:
    if got.shape != expected.shape:
        return False
    if expected.dtype.kind != "f":
        return np.array_equal(got, expected)
    # Far beyond rounding, far below what another size changes: parity judges the rest.
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
    return np.allclose(got, expected, rtol=0, atol=1e-3 * scale, equal_nan=True)


def first_difference(first: bytes, second: bytes) -> Difference | None:
    """The first node that differs between two ONNX graphs; None if none does.

    Operators, attributes, inputs and constants are compared. Names of values do not count, nor the
    shapes that are noted for them.
    """
    import onnx

    graphs = [onnx.load_from_string(content).graph for content in (first, second)]
    origins: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for graph, origin in zip(graphs, origins, strict=True):
        origin.update({value.name: ("input", index) for index, value in enumerate(graph.input)})
        origin.update({tensor.name: _constant(tensor) for tensor in graph.initializer})
    return _differ(graphs[0], graphs[1], origins)


def _calls(program: ExportedProgram) -> Iterator[Any]:
    return (node for node in program.graph.nodes if node.op == "call_function")


def _numbers(node: Any) -> tuple[Any, ...]:
    """A call's operator, the numbers in its arguments, and its result's fixed sizes."""
    import torch
    from torch.utils._pytree import tree_leaves

    arguments = tree_leaves((node.args, node.kwargs))
    given = [leaf for leaf in arguments if isinstance(leaf, int | float | str)]
    results = [leaf for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.Tensor)]
    fixed = [tuple(size if type(size) is int else None for size in result.shape) for result in results]
    return str(node.target), given, fixed


def _differ(
    first: onnx.GraphProto, second: onnx.GraphProto, origins: tuple[dict[str, Any], dict[str, Any]]
) -> Difference | None:
    from onnx import AttributeProto

    for index, (mine, other) in enumerate(zip_longest(first.node, second.node)):
        if mine is None or other is None:
            extra = mine or other
            return _difference(extra, "is in one of them only", extra)
        if (mine.domain, mine.op_type) != (other.domain, other.op_type):
            return _difference(mine, f"is {other.op_type} in the other", other)
        if len(mine.input) != len(other.input) or len(mine.output) != len(other.output):
            return _difference(mine, "has another number of inputs or outputs in the other", other)
        for one, two in zip(mine.input, other.input, strict=True):
            had, has = origins[0].get(one), origins[1].get(two)
            if had != has:
                return _difference(mine, f"takes {_said(had)} and {_said(has)}", other)
        theirs = {attribute.name: attribute for attribute in other.attribute}
        for attribute in mine.attribute:
            if attribute.type == AttributeProto.GRAPH:
                inner = tuple(dict(origin) for origin in origins)
                for part, known in zip((attribute.g, theirs[attribute.name].g), inner, strict=True):
                    known.update({v.name: ("input", index, place) for place, v in enumerate(part.input)})
                    known.update({tensor.name: _constant(tensor) for tensor in part.initializer})
                found = _differ(attribute.g, theirs[attribute.name].g, (inner[0], inner[1]))
                if found is not None:
                    return found
            elif attribute.name not in theirs or _value(attribute) != _value(theirs[attribute.name]):
                return _difference(mine, f"has another {attribute.name!r} in each", other)
        for origin, node in zip(origins, (mine, other), strict=True):
            # By place, not by name: a constant in a node of its own is known by what it holds.
            made = [_value(node.attribute[0])] if node.op_type == "Constant" else []
            for place, output in enumerate(node.output):
                origin[output] = made[place] if made else ("node", index, place, first.name)
    return None


def _difference(node: onnx.NodeProto, what: str, traced: onnx.NodeProto) -> Difference:
    traces = (p.value for p in traced.metadata_props if p.key.endswith(_TRACE_KEY))
    return Difference(
        node=(node.output[0] if node.output else "") or node.name,
        operator=node.op_type,
        what=what,
        trace=next(traces, ""),
    )


def _value(attribute: onnx.AttributeProto) -> Any:
    import onnx

    if attribute.type == onnx.AttributeProto.TENSOR:
        return _constant(attribute.t)
    return attribute.type, repr(onnx.helper.get_attribute_value(attribute))


def _constant(tensor: onnx.TensorProto) -> _Constant:
    from onnx import numpy_helper

    array = np.ascontiguousarray(numpy_helper.to_array(tensor))
    values = str(array.tolist()) if array.size <= SHOWN else ""
    digest = hashlib.sha256(array.view(np.uint8).data if array.size else b"").hexdigest()
    return _Constant(array.dtype.name, array.shape, digest, values)


def _said(origin: Any) -> str:
    if not isinstance(origin, _Constant):
        return "a computed value"
    values = f" of {origin.values}" if origin.values else ""
    return f"a constant {origin.dtype}{list(origin.shape)}{values}"
