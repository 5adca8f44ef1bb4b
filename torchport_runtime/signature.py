"""Names, dtypes, shapes and symbolic dimensions of a graph's inputs and outputs.

    Signature(
        inputs={"x": TensorSpec("float32", ("batch", 1))},
        outputs={"y": TensorSpec("float32", ("batch", 1))},
        dims={"batch": (1, 64)},
    )

It is written once, in the recipe, and stored with the artifacts as `signature.json`. Every request is
checked against it before it reaches a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from torchport_runtime.errors import SignatureError
from torchport_runtime.suggest import did_you_mean

DTYPES = frozenset(["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"])
DEFAULT_DIMS = MappingProxyType({"batch": (1, 64)})
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its dtype by numpy's name, and its shape.

    The shape has sizes and names of symbolic dimensions. `low` and `high` bound the values that make
    sense, such as token ids below the vocabulary's size: synthetic inputs are drawn between them, and a
    request outside of them is refused. For an output, both together are the range that its errors are
    judged by (0 and 1 for probabilities). An input with a `default` may be left out of a request: an
    optional mask, a first recurrent state.

    Raises:
        SignatureError: the dtype is unknown, a size is below 1, a name is no identifier, `low` is above
            `high`, or the default does not fit.
    """

    dtype: str
    shape: tuple[int | str, ...]
    low: float | None = field(default=None, kw_only=True)
    high: float | None = field(default=None, kw_only=True)
    default: float | bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SignatureError(f"dtype {self.dtype!r}: {did_you_mean(str(self.dtype), DTYPES)}")
        if isinstance(self.shape, (str, int)):
            raise SignatureError(f"shape {self.shape!r}: expected a tuple such as ('batch', 1)")
        object.__setattr__(self, "shape", tuple(self.shape))
        for size in self.shape:
            if isinstance(size, str):
                if not _IDENTIFIER.match(size):
                    raise SignatureError(f"dimension {size!r}: a name of letters, digits and _")
            elif not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise SignatureError(
                    f"shape {self.shape}: {size!r} is neither a size of at least 1 nor a name"
                )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise SignatureError(f"low {self.low} is above high {self.high}")
        if self.default is not None:
            is_bool = isinstance(self.default, bool)
            if is_bool != (self.dtype == "bool") or not isinstance(self.default, (bool, int, float)):
                raise SignatureError(f"default {self.default!r} is no {self.dtype}")
            self._check_default(float(self.default))

    def _check_default(self, value: float) -> None:
        dtype = np.dtype(self.dtype)
        limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype) if dtype.kind == "f" else None
        fits = limits is None or float(limits.min) <= value <= float(limits.max)
        if not fits or (dtype.kind in "iu" and value != int(value)):
            raise SignatureError(f"default {self.default!r} is nothing that {self.dtype} can hold")
        below = self.low is not None and value < self.low
        if below or (self.high is not None and value > self.high):
            raise SignatureError(f"default {self.default!r} is not between {self.low} and {self.high}")

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Names of the symbolic dimensions, in order."""
        return tuple(size for size in self.shape if isinstance(size, str))

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype as numpy's object."""
        return np.dtype(self.dtype)

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape with each symbolic dimension replaced by its size."""
        return tuple(sizes[s] if isinstance(s, str) else s for s in self.shape)

    def sizes(self, shape: tuple[int, ...]) -> dict[str, int]:
        """The size of each symbolic dimension in an array's shape."""
        return {s: n for s, n in zip(self.shape, shape, strict=False) if isinstance(s, str)}

    def clip(self, values: np.ndarray | float) -> np.ndarray:
        """Limit values to `low` and `high`, in a dtype that holds both."""
        array = np.asarray(values)
        if self.low is None and self.high is None:
            return array  # NumPy before 2.1 refuses to clip without a bound.
        clipped: np.ndarray = np.clip(array, self.low, self.high)
        return clipped

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def to_json(self) -> dict[str, Any]:
        spec: dict[str, Any] = {"dtype": self.dtype, "shape": list(self.shape)}
        for name in ("low", "high", "default"):
            if getattr(self, name) is not None:
                spec[name] = getattr(self, name)
        return spec

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> TensorSpec:
        more = {name: spec.get(name) for name in ("low", "high", "default")}
        return cls(spec["dtype"], tuple(spec["shape"]), **more)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs and outputs of one graph, in the order of its arguments.

    `dims` maps each symbolic dimension to its minimum and maximum size, both included. `batch` may be left
    out: it is (1, 64) then.

    Raises:
        SignatureError: no tensors, a dimension without bounds, or bounds in the wrong order.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    dims: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ("inputs", "outputs"):
            specs = getattr(self, role)
            if not isinstance(specs, Mapping) or not specs:
                raise SignatureError(
                    f"{role}: got {specs!r}, expected a mapping of at least one name to a TensorSpec"
                )
            for name, spec in specs.items():
                if not isinstance(name, str) or not _IDENTIFIER.match(name):
                    raise SignatureError(f"{role}: name {name!r} is not an identifier")
                if not isinstance(spec, TensorSpec):
                    raise SignatureError(f"{role}[{name!r}]: got {spec!r}, expected TensorSpec(dtype, shape)")
        used = {s for spec in self.inputs.values() for s in spec.symbols}
        for name, spec in self.outputs.items():
            for symbol in spec.symbols:
                if symbol not in used and symbol not in self.dims:
                    raise SignatureError(
                        f"outputs[{name!r}]: dimension {symbol!r} is in no input and not in dims"
                    )
        known = used | {s for spec in self.outputs.values() for s in spec.symbols}
        dims: dict[str, tuple[int, int]] = {}
        for symbol in sorted(known):
            bounds = self.dims.get(symbol, DEFAULT_DIMS.get(symbol))
            if bounds is None:
                raise SignatureError(
                    f"dimension {symbol!r} has no bounds: add dims = {{{symbol!r}: (least, greatest)}}"
                )
            if not isinstance(bounds, (tuple, list)) or [type(b) for b in bounds] != [int, int]:
                raise SignatureError(f"dims[{symbol!r}] = {bounds!r}: (least, greatest) is expected")
            low, high = bounds
            if not 1 <= low <= high:
                raise SignatureError(f"dims[{symbol!r}]: {bounds} is not 1 <= least <= greatest")
            dims[symbol] = (int(low), int(high))
        for symbol in self.dims:
            if symbol not in known:
                raise SignatureError(f"dims: {symbol!r} is in no tensor, {did_you_mean(symbol, known)}")
        object.__setattr__(self, "inputs", MappingProxyType(dict(self.inputs)))
        object.__setattr__(self, "outputs", MappingProxyType(dict(self.outputs)))
        object.__setattr__(self, "dims", MappingProxyType(dims))

    @cached_property
    def batch_dim(self) -> str | None:
        """The symbolic dimension that leads every input and output; None without one.

        Without it, requests are run one by one.
        """
        leading = {
            spec.shape[0] if spec.shape else None for spec in (*self.inputs.values(), *self.outputs.values())
        }
        first = leading.pop()
        return first if not leading and isinstance(first, str) else None

    def check_inputs(self, tensors: Mapping[str, np.ndarray], *, any_batch: bool = False) -> dict[str, int]:
        """Check input arrays; return the size of each symbolic dimension.

        With `any_batch` the batch may exceed its maximum: the caller runs it in pieces.

        Raises:
            SignatureError: a name is missing or unknown, a dtype or a shape is wrong, a size is out of its
                bounds, or a value is NaN, Inf or outside of `low` and `high`.
        """
        unbounded = self.batch_dim if any_batch else None
        sizes = self._check("input", self.inputs, tensors, unbounded)
        for name, array in tensors.items():
            spec = self.inputs[name]
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SignatureError(f"input {name!r} holds NaN or Inf: finite numbers are expected")
            if spec.low is not None and array.size and array.min() < spec.low:
                raise SignatureError(f"input {name!r}: {array.min()} is below {spec.low}")
            if spec.high is not None and array.size and array.max() > spec.high:
                raise SignatureError(f"input {name!r}: {array.max()} is above {spec.high}")
        return sizes

    def check_input_shapes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Check names, dtypes and shapes of inputs, but no values.

        It protects code that does not check shapes itself. Returns the size of each symbolic dimension.
        """
        return self._check("input", self.inputs, tensors, None)

    def with_defaults(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add missing inputs that have a default, in the given inputs' sizes.

        Raises:
            SignatureError: a missing input has a dimension that no given input has, a size exceeds its
                maximum, or no input was given.
        """
        missing = [n for n, spec in self.inputs.items() if n not in tensors and spec.default is not None]
        if not missing:
            return dict(tensors)
        if not tensors:
            raise SignatureError(f"nothing was given: at least one of {', '.join(self.inputs)} is expected")
        sizes: dict[str, int] = {}
        for name, array in tensors.items():
            if name in self.inputs:
                sizes |= self.inputs[name].sizes(array.shape)
        for symbol, size in sizes.items():
            # Before anything is made of that size.
            if symbol != self.batch_dim and size > self.dims[symbol][1]:
                raise SignatureError(f"{symbol!r} is {size}, expected at most {self.dims[symbol][1]}")
        filled = dict(tensors)
        for name in missing:
            spec = self.inputs[name]
            unknown = [s for s in spec.symbols if s not in sizes]
            if unknown:
                raise SignatureError(f"input {name!r} is missing, and nothing says what {unknown[0]!r} is")
            filled[name] = np.full(spec.resolve(sizes), spec.default, dtype=spec.dtype)
        return {name: filled[name] for name in (*self.inputs, *filled) if name in filled}

    def check_outputs(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Check output arrays; return the size of each symbolic dimension.

        Raises:
            SignatureError: a name is missing or unknown, a dtype or a shape is wrong, or a size is out of
                its bounds.
        """
        return self._check("output", self.outputs, tensors)

    def _check(
        self,
        role: str,
        specs: Mapping[str, TensorSpec],
        tensors: Mapping[str, np.ndarray],
        unbounded: str | None = None,
    ) -> dict[str, int]:
        for name in tensors:
            if name not in specs:
                raise SignatureError(f"unknown {role} {name!r}: {did_you_mean(name, specs)}")
        sizes: dict[str, int] = {}
        for name, spec in specs.items():
            if name not in tensors:
                raise SignatureError(f"{role} {name!r} is missing: expected {spec}")
            array = tensors[name]
            if array.dtype != spec.numpy_dtype or array.ndim != len(spec.shape):
                raise SignatureError(f"{role} {name!r}: got {_described(array)}, expected {spec}")
            for size, want in zip(array.shape, spec.shape, strict=True):
                if isinstance(want, int):
                    if size != want:
                        raise SignatureError(f"{role} {name!r}: got {_described(array)}, expected {spec}")
                    continue
                if sizes.setdefault(want, size) != size:
                    raise SignatureError(
                        f"{role} {name!r}: got {_described(array)}, but {want!r} is {sizes[want]} in "
                        f"another {role}"
                    )
                low, high = self.dims[want]
                if size < low or (size > high and want != unbounded):
                    raise SignatureError(f"{role} {name!r}: {want!r} is {size}, expected {low} to {high}")
        return sizes

    def zeros(self, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
        """Inputs of zeros, or of the nearest valid value.

        Symbolic dimensions have the given `sizes`, or their minimum.
        """
        at = {symbol: low for symbol, (low, _) in self.dims.items()} | dict(sizes or {})
        return {
            name: np.full(spec.resolve(at), spec.clip(0), dtype=spec.dtype)
            for name, spec in self.inputs.items()
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": {name: spec.to_json() for name, spec in self.inputs.items()},
            "outputs": {name: spec.to_json() for name, spec in self.outputs.items()},
            "dims": {name: list(bounds) for name, bounds in self.dims.items()},
        }

    @classmethod
    def from_json(cls, signature: Mapping[str, Any]) -> Signature:
        return cls(
            inputs={n: TensorSpec.from_json(s) for n, s in signature["inputs"].items()},
            outputs={n: TensorSpec.from_json(s) for n, s in signature["outputs"].items()},
            dims={n: (b[0], b[1]) for n, b in signature["dims"].items()},
        )


def _described(array: np.ndarray) -> str:
    return f"{array.dtype}[{', '.join(map(str, array.shape))}]"
