"""A model described in a few lines becomes a recipe; what its export holds may be another computation."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import torchport.export.artifacts
import torchport.export.exporting
from torchport.export.exporting import export
from torchport.model.graphs import model_graphs
from torchport.recipe.contract import Recipe
from torchport.recipe.loading import load_recipe
from torchport.store.folders import BuildFolder, Store
from torchport.train.training import train
from torchport.verify.verifying import ParityResult, verify

RECIPE = """
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from torchport import Recipe, Request, TensorSpec
from torchport.recipe.inputs import random_inputs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.planted = False
        torch.manual_seed(0)
{layers}

    def forward(self, {arguments}):
        if self.planted:
{wrong}
        else:
{right}
        return y


class Tiny(Recipe):
    name, version, handler = "tiny", "1.0", "regressor"
    backends = ships = {backends}
    torchscript = "{torchscript}"
    inputs = {{{inputs}}}
    outputs = {{{outputs}}}
    dims = {dims}

    def build(self):
        return Net()

    def samples(self):
        yield random_inputs(self.signatures()["main"], {sizes}, 7)

    def requests(self):
        inputs = random_inputs(self.signatures()["main"], {{**{sizes}, "batch": 1}}, 8)
        return [Request(json={{n: a.tolist() for n, a in inputs.items()}}, tensors=inputs)]
"""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A module by the lines of its `__init__` and `forward`, the last of which sets `y`.

    `inputs` and `outputs` are the arguments of a `TensorSpec` by name; the symbolic dimensions are bounded
    by `dims`, and the recipe's sample is of `sizes`.
    """

    right: str
    layers: str = "pass"
    inputs: Mapping[str, str] = field(default_factory=lambda: {"x": '"float32", ("batch", 6)'})
    outputs: Mapping[str, str] = field(default_factory=lambda: {"y": '"float32", ("batch", 6)'})
    dims: Mapping[str, tuple[int, int]] = field(default_factory=lambda: {"batch": (1, 16)})
    sizes: Mapping[str, int] = field(default_factory=lambda: {"batch": 4})
    backends: Sequence[str] = ("torchscript",)
    torchscript: str = "trace"

    def source(self, wrong: str | None = None) -> str:
        def specs(of: Mapping[str, str]) -> str:
            return ", ".join(f'"{name}": TensorSpec({arguments})' for name, arguments in of.items())

        def lines(of: str, depth: int) -> str:
            return textwrap.indent(textwrap.dedent(of).strip(), " " * depth)

        return RECIPE.format(
            layers=lines(self.layers, 8),
            arguments=", ".join(self.inputs),
            right=lines(self.right, 12),
            wrong=lines(self.right if wrong is None else wrong, 12),
            inputs=specs(self.inputs),
            outputs=specs(self.outputs),
            dims=dict(self.dims),
            sizes=dict(self.sizes),
            backends=tuple(self.backends),
            torchscript=self.torchscript,
        )


Shipped = tuple[Recipe, BuildFolder]


@pytest.fixture
def shipped_as(
    write_recipe: Callable[..., Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Shipped]:
    """Train a model, and export it, or, where `wrong` is given, what `forward` is with those lines."""

    def build(model: Model, wrong: str | None = None) -> Shipped:
        recipe = load_recipe(write_recipe(source=model.source(wrong)))
        folder = store.build(recipe.name, recipe.version)
        train(recipe, folder)
        with monkeypatch.context() as patch:
            if wrong is not None:
                patch.setattr(torchport.export.exporting, "model_graphs", _planted)
                # Another tool's export is not checked as ours is.
                patch.setattr(torchport.export.artifacts, "check_eager_outputs", lambda *given: None)
            export(recipe, folder)
        return recipe, folder

    return build


def _planted(recipe: Recipe, model: object) -> dict[str, object]:
    graphs = model_graphs(recipe, model)  # type: ignore[arg-type]
    for module in graphs.values():
        module.planted = True  # type: ignore[assignment]
    return dict(graphs)


@pytest.fixture
def verified(shipped_as: Callable[..., Shipped]) -> Callable[..., ParityResult]:
    """What `verify` says of a model, or of an export that computes `wrong` in its place."""

    def run(model: Model, wrong: str | None = None) -> ParityResult:
        return verify(*shipped_as(model, wrong))

    return run
