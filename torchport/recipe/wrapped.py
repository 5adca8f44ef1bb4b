"""Base class of recipes for pretrained models without a recipe's methods.

Only the callable is known. The inputs are described on the command line, the outputs are found by
running the model, and the handler is `tensor`. Only the outputs are verified, on random inputs or on
`--sample FILE.npz`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import RecipeError
from torchport.recipe.contract import Recipe, Request
from torchport.recipe.inputs import random_inputs
from torchport.recipe.probing import parse_dim, parse_input, probe
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import nn

SAMPLE_ROWS = 8
"""Rows of a sample. They are enough for a bound on each output channel."""

JSON_ELEMENTS = 2000
"""Maximum input elements of a JSON request. Larger inputs are sent as `.npz` only."""

STEPS = 8
"""Denominator of the samples' values. Multiples of 1/8 compress well enough to be in the certificate."""


class WrappedModel(Recipe):
    """A recipe whose model comes from `build` and whose signature from `describe`.

    A subclass's `configure` calls `describe`.
    """

    handler = "tensor"
    optional_backends = ("pt2",)

    def describe(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        dims: Sequence[str],
        sample: Path | None,
    ) -> None:
        """Set name, signature and samples from the given descriptions.

        Raises:
            RecipeError: a description that cannot be read, or that the model does not fit.
        """
        self.name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        if not inputs:
            raise RecipeError("--input is missing: name:dtype:dims, such as image:float32:batch,3,224,224")
        specs, bounds = [parse_input(text) for text in inputs], [parse_dim(text) for text in dims]
        for what, names in (
            ("--input", [name for name, _ in specs]),
            ("--dim", [name for name, _ in bounds]),
            ("--outputs", list(outputs)),
        ):
            for name in names:
                if names.count(name) > 1:
                    raise RecipeError(f"{what} {name!r} is given twice")
        self._signature = probe(self.build(), dict(specs), dict(bounds), outputs)
        self._sample = sample

    def dependencies(self) -> Iterable[Path]:
        """The file of samples. A subclass adds the files with the model's code."""
        return () if self._sample is None else (self._sample,)

    def signatures(self) -> dict[str, Signature]:
        return {"main": self._signature}

    def samples(self) -> Iterable[dict[str, np.ndarray]]:
        if self._sample is not None:
            try:
                with np.load(self._sample, allow_pickle=False) as arrays:
                    yield {name: arrays[name] for name in self._signature.inputs}
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as err:
                names = list(self._signature.inputs)
                raise RecipeError(f"--sample {self._sample}: an .npz of {names} is expected: {err}") from err
            return
        dims = self._signature.dims
        sizes = {s: min(high, max(low, SAMPLE_ROWS)) for s, (low, high) in dims.items()}
        drawn = random_inputs(self._signature, sizes, seed=7)
        yield {
            n: np.rint(a * STEPS) / a.dtype.type(STEPS) if a.dtype.kind == "f" else a
            for n, a in drawn.items()
        }

    def requests(self) -> list[Request]:
        (sample,) = list(self.samples())[:1]
        rows = 1 if self._signature.batch_dim else None
        one = {name: array[:rows] for name, array in sample.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **one)  # type: ignore[arg-type]
        sent = [Request(body=buffer.getvalue(), content_type="application/x-npz", tensors=one)]
        if sum(array.size for array in one.values()) <= JSON_ELEMENTS:
            sent.insert(0, Request(json={n: a.tolist() for n, a in one.items()}, tensors=one))
        return sent

    def checked(self, model: Any, what: str) -> nn.Module:
        """Return `model` in evaluation mode, if it is a module.

        Raises:
            RecipeError: it is none.
        """
        from torch import nn

        if not isinstance(model, nn.Module):
            raise RecipeError(f"{what} gives {type(model).__name__}, expected an nn.Module")
        return model.eval()


def parse_arguments(given: Sequence[str]) -> dict[str, Any]:
    """Parse `["num_classes=10", "weights=DEFAULT"]` to keyword arguments.

    Values are JSON if they parse as such.

    Raises:
        RecipeError: no name, or no `=`.
    """
    arguments = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise RecipeError(f"argument {text!r}: name=value is expected, such as num_classes=10")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments
