"""Finds the signature of a model by running it at several sizes.

inputs = dict([parse_input("image:float32:batch,3,224,224")])
signature = probe(model, inputs, dims={"batch": (1, 16)})
signature.outputs                # {"output": TensorSpec("float32", ("batch", 1000))}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import RecipeError, SignatureError
from torchport.recipe.inputs import example_inputs, random_inputs
from torchport_runtime import Signature, TensorSpec

if TYPE_CHECKING:
    from torch import nn

BATCH = (1, 16)


def parse_input(text: str) -> tuple[str, TensorSpec]:
    """Parse an input's description: `name:dtype:dims`, such as `image:float32:batch,3,224,224`.

    Values with bounds are `name:dtype:dims:low..high`. If a request may leave the input out, the
    default follows: `mask:bool:batch,time=true`.

    Raises:
        RecipeError: anything else.
    """
    described, _, default_text = text.partition("=")
    parts = described.split(":")
    if len(parts) not in (3, 4) or not all(parts):
        raise RecipeError(
            f"input {text!r}: name:dtype:dims is expected, such as image:float32:batch,3,224,224"
        )
    name, dtype, dims = parts[:3]
    shape = tuple(int(d) if d.isdigit() else d for d in (d.strip() for d in dims.split(",")))
    low = high = None
    if len(parts) == 4:
        try:
            low, high = (float(bound) for bound in parts[3].split("..", 1))
        except ValueError as err:
            raise RecipeError(f"input {text!r}: bounds such as 0..999 are expected at its end") from err
    default = None
    if default_text:
        try:
            default = json.loads(default_text)
        except ValueError as err:
            raise RecipeError(f"input {text!r}: a number, true or false is expected after =") from err
    try:
        return name, TensorSpec(dtype, shape, low=low, high=high, default=default)
    except SignatureError as err:
        raise RecipeError(f"input {text!r}: {err}") from err


def parse_dim(text: str) -> tuple[str, tuple[int, int]]:
    """Parse a dimension's bounds: `name:minimum,maximum`.

    Raises:
        RecipeError: anything else.
    """
    name, _, bounds = text.partition(":")
    numbers = bounds.split(",")
    if not name.isidentifier() or len(numbers) != 2 or not all(n.strip().isdigit() for n in numbers):
        raise RecipeError(f"dim {text!r}: name:least,greatest is expected, such as time:1,512")
    return name, (int(numbers[0]), int(numbers[1]))


def probe(
    model: nn.Module,
    inputs: Mapping[str, TensorSpec],
    dims: Mapping[str, tuple[int, int]],
    names: Sequence[str] = (),
) -> Signature:
    """Run the model at several sizes, and see which dimensions its outputs follow.

    `names` are for the outputs, in the order in which the model returns them. Without them, the names
    are the model's own (of a dict), or `output`, `output_0`, ... An output size that changes with an
    input's but is not it (half of it, say) gets a name of its own.

    Raises:
        RecipeError: the model fails on such inputs, or returns something else than tensors.
    """
    symbols = {s for spec in inputs.values() for s in spec.symbols}
    bounds = ({"batch": BATCH} if "batch" in symbols else {}) | dict(dims)
    try:
        # Its output is a stand-in: only the inputs are needed to draw some.
        given = Signature(inputs=inputs, outputs={"output": TensorSpec("float32", (1,))}, dims=bounds)
    except SignatureError as err:
        raise RecipeError(f"inputs: {err}: give --dim name:least,greatest") from err
    drawn = example_inputs(given)
    base = {s: n for name, array in drawn.items() for s, n in inputs[name].sizes(array.shape).items()}

    def shapes(sizes: dict[str, int]) -> dict[str, np.ndarray]:
        return _run(model, random_inputs(given, sizes, 0), names)

    first = shapes(base)
    varied = {
        symbol: [(other, shapes(base | {symbol: other})) for other in _other_sizes(base[symbol], bounds)]
        for symbol, bounds in given.dims.items()
    }
    ends = [shapes({s: given.dims[s][end] for s in base}) for end in (0, 1)]
    outputs: dict[str, TensorSpec] = {}
    all_dims = dict(given.dims)
    for name, array in first.items():
        shape: list[int | str] = []
        for axis, size in enumerate(array.shape):
            seen = {
                s: [(other, outs[name].shape[axis]) for other, outs in runs] for s, runs in varied.items()
            }
            follows = [s for s, pairs in seen.items() if any(got != size for _, got in pairs)]
            if not follows:
                shape.append(size)
                continue
            (symbol, *others) = follows
            if others or size != base[symbol] or any(other != got for other, got in seen[symbol]):
                symbol = f"{name}_{axis}"
                low, high = sorted(end[name].shape[axis] for end in ends)
                all_dims[symbol] = (low, high)
            shape.append(symbol)
        outputs[name] = TensorSpec(str(array.dtype), tuple(shape))
    return Signature(inputs=inputs, outputs=outputs, dims=all_dims)


def _other_sizes(size: int, bounds: tuple[int, int]) -> list[int]:
    """Sizes to compare with: both ends, and near ones, because a stride hides small changes."""
    low, high = bounds
    return sorted({n for n in (low, size - 1, size + 1, size + 2, high) if low <= n <= high} - {size})


def _run(model: nn.Module, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    import torch

    shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in inputs.items())
    try:
        with torch.no_grad():
            returned: Any = model.eval()(*(torch.from_numpy(a) for a in inputs.values()))
    except Exception as err:  # forward is somebody's code: whatever it raises is the answer.
        raise RecipeError(
            f"{type(model).__name__} on inputs {shapes}: {type(err).__name__}: {str(err)[:300]} (are the "
            "inputs in the order of forward, with its shapes and dtypes? Token ids want bounds: "
            "--input tokens:int64:batch,time:0..49)"
        ) from err
    if isinstance(returned, Mapping):
        named = dict(returned)
    elif isinstance(returned, (tuple, list)):
        named = {f"output_{index}": value for index, value in enumerate(returned)}
    else:
        named = {"output": returned}
    for name, value in named.items():
        if not torch.is_tensor(value) or not value.ndim or not str(name).isidentifier():
            raise RecipeError(
                f"{type(model).__name__} returns {type(value).__name__} as {name!r}: tensors of at least one "
                "dimension are expected; wrap it in a module that returns those"
            )
    if names and len(names) != len(named):
        raise RecipeError(f"{len(names)} output names for {len(named)} outputs: {', '.join(map(str, named))}")
    values = [value.detach().cpu().numpy() for value in named.values()]
    return dict(zip(names or map(str, named), values, strict=True))
