"""What can be found wrong with a recipe before its training, which may take hours."""

from __future__ import annotations

from torch import nn

from torchport.cases import parity_cases
from torchport.errors import RecipeError
from torchport.export import check_eager_outputs, example_inputs, model_graphs
from torchport.handler_file import handler_class, recipe_requests
from torchport.recipe import Recipe
from torchport.recipe_file import find_handler
from torchport.user_code import running


def check_untrained(recipe: Recipe) -> None:
    """Build the model and hold it, the samples and the handler's file against the contract.

    Raises:
        RecipeError: build, samples or the handler's file fail, or a sample does not fit the signature.
        ExportError: the untrained model does not take or give what the signature says.
    """
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
        next(parity_cases(recipe, graph, signature))
    recipe_requests(recipe)
