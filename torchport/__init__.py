"""torchport: from a PyTorch training script to a served, verified endpoint.

import torchport
model = torchport.load("model_store/linear-1.0.mar")
model.predict([4.0])                                # [14.17]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torchport.version import __version__

if TYPE_CHECKING:
    from torchport.archive.model import ArchivedModel, load
    from torchport.errors import TorchportError
    from torchport.recipe.contract import Example, Recipe, Request, Serving
    from torchport.recipe.datasets import PackagedData
    from torchport_runtime import ImageTransform, Signature, TensorSpec


# Imported when they are asked for: a server's worker must find the archive's own torchport_runtime first.
_HOMES = {
    "ArchivedModel": "torchport.archive.model",
    "Example": "torchport.recipe.contract",
    "ImageTransform": "torchport_runtime",
    "PackagedData": "torchport.recipe.datasets",
    "Recipe": "torchport.recipe.contract",
    "Request": "torchport.recipe.contract",
    "Serving": "torchport.recipe.contract",
    "Signature": "torchport_runtime",
    "TensorSpec": "torchport_runtime",
    "TorchportError": "torchport.errors",
    "load": "torchport.archive.model",
}

__all__ = [
    "ArchivedModel",
    "Example",
    "ImageTransform",
    "PackagedData",
    "Recipe",
    "Request",
    "Serving",
    "Signature",
    "TensorSpec",
    "TorchportError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'torchport' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
