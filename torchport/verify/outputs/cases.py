"""The inputs on which exports are compared with the trained model.

They are real, random, swept over every dimension and pair of dimensions, over magnitudes and over every
possible integer, and beyond what a request may hold:

    for case in parity_cases(recipe, "main", signature): case.name, case.inputs, case.judged
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Literal

import numpy as np

from torchport.errors import RecipeError
from torchport.recipe.contract import Recipe
from torchport.recipe.inputs import elements, random_inputs
from torchport.recipe.samples import checked_samples
from torchport_runtime import Signature, TensorSpec

BATCH_ROWS = 8
"""Maximum rows of a batch that are compared with single rows."""

THREADS = (1, 3)
"""Numbers of threads to compare, next to the recipe's own. One thread sums in one order; three share no
power of two evenly. Fixed numbers keep the certificate the same on every machine."""

SEEDS = (1, 2, 3)
MAX_ELEMENTS = 2**28
PAIR_ELEMENTS = 2**18
"""Maximum elements of inputs with two dimensions at their ends at once. Beyond it the larger dimension is
halved, because time and memory grow with the product."""

EXTREMES = {"zeros": 0.0, "ones": 1.0, "large": 1e4, "small": 1e-4, "denormal": 1e-40}
"""Values of floating inputs, by case. An input is filled with 0 or 1; other values multiply standard normal
numbers. Integers are at an end of their range."""

MAGNITUDES = {"tens": 10.0, "hundreds": 100.0, "hundredths": 0.01, "millions": 1e6}
"""Factors of floating inputs alone, by case. Thresholds, clamps and other branches lie between the extremes
(softplus turns linear at 20, half precision ends at 65504)."""

BEYOND = {"all NaN": np.nan, "all Inf": np.inf, "all -Inf": -np.inf, "greatest": 1e38}
"""Values that no float32 model computes on. A model's answer that is not finite must not come out finite."""

WIDE = 2**33
"""Upper end for unbounded integer inputs; beyond int32, so that truncation shows."""

EVERY_INTEGER_CASES, EVERY_INTEGER_ELEMENTS = 64, 4096
"""Maximum cases, and elements of each, that go through a range of integers. Integers beyond them are not
tried. The names of the cases say which part of how many they are."""


@dataclass(frozen=True)
class Case:
    """One set of inputs; `name` says where it comes from.

    `judged` says what an export must do. "values": give the model's values. "hidden": hide nothing that
    is not finite behind finite numbers. "counted": nothing, differences are counted only. If `optional`,
    the model itself may refuse the inputs.
    """

    name: str
    inputs: dict[str, np.ndarray]
    judged: Literal["values", "hidden", "counted"] = "values"
    optional: bool = False

    @property
    def is_sample(self) -> bool:
        """Whether the inputs are a sample of the recipe."""
        return self.name.startswith("sample")

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def compares_rows(self) -> bool:
        """Whether rows are also run one by one; this needs a batch dimension."""
        return self.is_sample or self.name.startswith("seed")


def parity_cases(
    recipe: Recipe, graph: str, signature: Signature, guards: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Case]:
    """Every case of one graph.

    `guards` are those of its export (`torchport.export.guards`).

    Raises:
        RecipeError: the recipe gives no samples, or one that does not fit its own signature; or a dimension
            is too large to be swept.
    """
    for index, sample in enumerate(checked_samples(recipe, graph, signature)):
        yield Case(f"sample {index}", sample)
    usual = {s: min(high, max(low, 2)) for s, (low, high) in signature.dims.items()}
    yield from _sizes(recipe, signature, usual)
    for guard in guards:
        for sizes in guard["not_at"]:
            if elements(signature, sizes) > MAX_ELEMENTS:
                continue  # Nobody serves that: the guard holds for all that are smaller.
            said = ", ".join(f"{symbol}={size}" for symbol, size in sizes.items())
            name = f"{said} (captured where {guard['holds_where']})"
            yield Case(name, random_inputs(signature, sizes, 0))
    for seed in SEEDS:
        yield Case(f"seed {seed}", random_inputs(signature, usual, seed))
    for name, value in EXTREMES.items():
        inputs = random_inputs(signature, usual, 0)
        yield Case(name, {n: extreme(signature.inputs[n], a, value) for n, a in inputs.items()})
    yield from _integers(signature, usual)
    yield from _floats(signature, usual)
    left_out = {n: spec.default for n, spec in signature.inputs.items() if spec.default is not None}
    if left_out:  # The server fills these in for requests that do not hold them.
        inputs = random_inputs(signature, usual, 0)
        yield Case("defaults", inputs | {n: np.full_like(inputs[n], value) for n, value in left_out.items()})


def _sizes(recipe: Recipe, signature: Signature, usual: dict[str, int]) -> Iterator[Case]:
    """Cases with each input dimension at several sizes, and pairs at their ends."""
    of_inputs = {symbol for spec in signature.inputs.values() for symbol in spec.symbols}
    dims = {symbol: bounds for symbol, bounds in signature.dims.items() if symbol in of_inputs}
    for symbol, (low, high) in dims.items():
        for size in sweep(low, high):
            sizes = usual | {symbol: size}
            count = elements(signature, sizes)
            if count > MAX_ELEMENTS:
                raise RecipeError(
                    f"{recipe.path.name}: inputs at {symbol}={size} have {count:,} elements, which no "
                    f"machine is asked to prove: give dims a lower greatest {symbol!r}"
                )
            yield Case(f"{symbol}={size}", random_inputs(signature, sizes, 0))
    seen = [usual | {symbol: size} for symbol, bounds in dims.items() for size in sweep(*bounds)]
    moving = [symbol for symbol, (low, high) in dims.items() if low < high]
    for pair in combinations(moving, 2):
        # A size at its end alone shows no limit on a product, nor what holds while one exceeds the other.
        for ends in product(*(dims[symbol] for symbol in pair)):
            sizes = usual | dict(zip(pair, ends, strict=True))
            while elements(signature, sizes) > PAIR_ELEMENTS:
                largest = max(pair, key=lambda symbol: sizes[symbol] / dims[symbol][0])
                if sizes[largest] // 2 < dims[largest][0]:
                    break
                sizes[largest] //= 2
            if sizes in seen:
                continue
            seen.append(sizes)
            name = ", ".join(f"{symbol}={sizes[symbol]}" for symbol in pair)
            yield Case(name, random_inputs(signature, sizes, 0))


def sweep(low: int, high: int) -> list[int]:
    """Sizes to try: minimum, maximum, 3 and an odd size near the middle."""
    odd = {3, (low + high) // 2 | 1}
    return sorted({low, high} | {size for size in odd if low <= size <= high})


def extreme(spec: TensorSpec, random: np.ndarray, value: float) -> np.ndarray:
    """Extreme inputs: floats of the given magnitude, integers at an end of their range."""
    if random.dtype.kind == "b":
        return np.full_like(random, value >= 1)
    if random.dtype.kind in "iu":
        low = 0 if spec.low is None else int(spec.low)
        high = low + 1 if spec.high is None else int(spec.high)
        return np.full_like(random, high if value >= 1 else low)
    filled = np.full_like(random, value) if value in (0.0, 1.0) else random * random.dtype.type(value)
    return spec.clip(filled).astype(random.dtype)


def _floats(signature: Signature, usual: dict[str, int]) -> Iterator[Case]:
    """Cases with floats of other magnitudes, on edges of rounding, not finite."""
    floats = [name for name, spec in signature.inputs.items() if spec.numpy_dtype.kind == "f"]
    if not floats:
        return
    inputs = random_inputs(signature, usual, 0)

    def changed(new: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        clipped = {n: signature.inputs[n].clip(a).astype(inputs[n].dtype) for n, a in new.items()}
        return inputs | clipped

    with np.errstate(over="ignore"):  # float16 has no millions: they are Inf, which both compute on.
        for name, value in MAGNITUDES.items():
            yield Case(name, changed({n: inputs[n] * inputs[n].dtype.type(value) for n in floats}))
        # Rounding's edges, and equal values, which sorting and choosing the first must put in one order.
        yield Case("halves", changed({n: np.round(inputs[n] * 4) / 2 for n in floats}))
        for name, value in BEYOND.items():
            filled = {n: np.full_like(inputs[n], value) for n in floats}
            yield Case(name, changed(filled), judged="hidden", optional=True)
    for name, value in (("one NaN", np.nan), ("one Inf", np.inf)):
        # Kernels differ in what they make of it (a maximum may pass over NaN), and no request holds it.
        one = {n: inputs[n].copy() for n in floats}
        for array in one.values():
            array.reshape(-1)[:1] = value
        yield Case(name, inputs | one, judged="counted", optional=True)


def _integers(signature: Signature, usual: dict[str, int]) -> Iterator[Case]:
    """Cases with every integer between the bounds, or with wide integers without bounds.

    Each integer may choose another row of a table.
    """
    inputs = random_inputs(signature, usual, 0)
    whole = {n: s for n, s in signature.inputs.items() if s.numpy_dtype.kind in "iu"}
    wide = {n: s for n, s in whole.items() if s.low is None or s.high is None}
    if wide:
        for name, sign in (("wide", 1), ("wide, negative", -1)):
            ends = {n: _wide(spec, inputs[n], sign) for n, spec in wide.items()}
            yield Case(name, inputs | ends, optional=True)
    ranges = {n: integer_range(spec) for n, spec in whole.items() if n not in wide}
    if not ranges:
        return
    sizes = dict(usual)
    for name, values in ranges.items():
        for symbol in whole[name].symbols:
            others = math.prod(whole[name].resolve(sizes | {symbol: 1}))
            _, high = signature.dims[symbol]
            wanted = math.ceil(min(len(values), EVERY_INTEGER_ELEMENTS) / others)
            sizes[symbol] = max(sizes[symbol], min(high, wanted))
    inputs = random_inputs(signature, sizes, 0)
    rounds = max(math.ceil(len(values) / inputs[n].size) for n, values in ranges.items())
    for index in range(min(rounds, EVERY_INTEGER_CASES)):
        swept = {}
        for name, values in ranges.items():
            places = np.arange(inputs[name].size) + index * inputs[name].size
            each = values.start + places % len(values)
            swept[name] = each.reshape(inputs[name].shape).astype(inputs[name].dtype)
        yield Case(f"every integer, part {index + 1} of {rounds}", inputs | swept)


def integer_range(spec: TensorSpec) -> range:
    """All integers that an input with bounds may hold."""
    return range(math.ceil(spec.low or 0), math.floor(spec.high or 0) + 1)


def _wide(spec: TensorSpec, random: np.ndarray, sign: int) -> np.ndarray:
    """Integers moved beyond 32 bits, within dtype and bounds."""
    limits = np.iinfo(random.dtype)
    low = limits.min if spec.low is None else int(spec.low)
    high = limits.max if spec.high is None else int(spec.high)
    reach = min(WIDE, limits.max)
    moved = [min(max(sign * (reach - int(value)), low), high) for value in random.reshape(-1)]
    return np.array(moved, random.dtype).reshape(random.shape)
