"""torchport: from a PyTorch training script to a served, verified endpoint.

import torchport
model = torchport.load("model_store/linear-1.0.mar")
model.predict([4.0])                                # [14.17]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchport.datasets import PackagedData
    from torchport.errors import TorchportError
    from torchport.loading import ArchivedModel, load
    from torchport.recipe import Example, Recipe, Request, Serving
    from torchport_runtime import ImageTransform, Signature, TensorSpec

__version__ = "0.1.0"

# Imported when they are asked for: a server's worker must find the archive's own torchport_runtime first.
_HOMES = {
    "ArchivedModel": "torchport.loading",
    "Example": "torchport.recipe",
    "ImageTransform": "torchport_runtime",
    "PackagedData": "torchport.datasets",
    "Recipe": "torchport.recipe",
    "Request": "torchport.recipe",
    "Serving": "torchport.recipe",
    "Signature": "torchport_runtime",
    "TensorSpec": "torchport_runtime",
    "TorchportError": "torchport.errors",
    "load": "torchport.loading",
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
