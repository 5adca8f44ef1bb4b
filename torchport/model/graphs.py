"""The graphs of a recipe's model: the modules that are exported, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchport.errors import RecipeError
from torchport.recipe.contract import Recipe
from torchport.recipe.user_code import running

if TYPE_CHECKING:
    from torch import nn


def model_graphs(recipe: Recipe, model: nn.Module) -> dict[str, nn.Module]:
    """The recipe's graphs of a trained model, as modules by name.

    Raises:
        RecipeError: graphs() fails, or gives something else than modules by name.
    """
    from torch import nn

    with running(recipe.path, "graphs"):
        graphs = recipe.graphs(model)
    if not isinstance(graphs, dict) or not all(isinstance(g, nn.Module) for g in graphs.values()):
        raise RecipeError(
            f"{recipe.path.name}: graphs() gives {type(graphs).__name__}, expected modules by name"
        )
    return graphs
