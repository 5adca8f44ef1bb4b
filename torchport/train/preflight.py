"""Checks a recipe before its training, which may take hours."""

from __future__ import annotations

from torchport.errors import RecipeError
from torchport.model.graphs import model_graphs
from torchport.model.outputs import check_eager_outputs
from torchport.recipe.contract import Recipe
from torchport.recipe.handler import handler_class
from torchport.recipe.inputs import example_inputs
from torchport.recipe.loading import find_handler
from torchport.recipe.requests import recipe_requests
from torchport.recipe.samples import checked_samples
from torchport.recipe.user_code import running


def check_untrained(recipe: Recipe) -> None:
    """Build the model, and check it, the samples and the handler's file.

    Raises:
        RecipeError: build, samples or the handler's file fail, or a sample does not fit the signature.
        ExportError: the untrained model does not take or give what the signature says.
    """
    from torch import nn

    handler_class(find_handler(recipe))
    with running(recipe.path, "build"):
        model = recipe.build()
    if not isinstance(model, nn.Module):
        raise RecipeError(f"{recipe.path.name}: build() gives {type(model).__name__}, expected an nn.Module")
    signatures = recipe.signatures()
    for graph, module in model_graphs(recipe, model).items():
        if graph not in signatures:
            raise RecipeError(f"{recipe.path.name}: graphs() has {graph!r}, signatures() has not")
        signature = signatures[graph]
        check_eager_outputs(recipe, graph, module.eval(), signature, example_inputs(signature))
        next(checked_samples(recipe, graph, signature))
    recipe_requests(recipe)
