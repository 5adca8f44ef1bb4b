"""Reads back the trained model, and refuses files that have changed since.

model = trained_model(recipe, folder)            # in evaluation mode, on the CPU
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchport.errors import StaleError
from torchport.model.weights import load_weights
from torchport.recipe.contract import Recipe
from torchport.recipe.user_code import running
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_file, sha256_tree

if TYPE_CHECKING:
    from torch import nn


def trained_model(recipe: Recipe, folder: BuildFolder) -> nn.Module:
    """The recipe's model with the trained weights, in evaluation mode, on the CPU.

    Raises:
        StaleError: not trained, or weights, assets or recipe are not those of the training.
        TrainingError: the weights do not fit the model that the recipe builds.
    """
    require_training(recipe, folder)
    return rebuilt_model(recipe, folder)


def rebuilt_model(recipe: Recipe, folder: BuildFolder) -> nn.Module:
    """`trained_model` without hashing the files again, after `require_training` under the same lock.

    Raises:
        TrainingError: the weights do not fit the model that the recipe builds.
    """
    with running(recipe.path, "build"):
        model = recipe.build()
    load_weights(model, folder.weights)
    return model.eval()


def require_training(recipe: Recipe, folder: BuildFolder) -> dict[str, Any]:
    """The training record, after comparing weights, assets and recipe with it.

    Raises:
        StaleError: not trained, or one of them has changed since; the message names it.
    """
    record = folder.training_record()
    if record is None or not folder.weights.is_file():
        raise StaleError(f"{folder.name} {folder.version} is not trained: torchport train {folder.name}")
    again = f"torchport train {folder.name}"
    for changed, what, then in (
        (
            record["inputs"].get("sources") != dict(recipe.sources),
            "the recipe",
            f"{again}, with --keep-weights if the change is none to its weights",
        ),
        (sha256_file(folder.weights) != record["weights_sha256"], "weights.pt", again),
        (sha256_tree(folder.assets) != record["assets"], "assets", again),
    ):
        if changed:
            raise StaleError(
                f"{folder.name} {folder.version}: {what} has changed since it was trained: {then}"
            )
    return record
