"""A graph of a recipe together with the inputs that it is traced with.

graph = TracedGraph(recipe, module, signature, example_inputs(signature))
capture(graph, "bfloat16")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from torchport.recipe.contract import Recipe
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TracedGraph:
    """One graph: its module in evaluation mode, its signature, and arrays by input name."""

    recipe: Recipe
    module: nn.Module
    signature: Signature
    inputs: Mapping[str, np.ndarray]
