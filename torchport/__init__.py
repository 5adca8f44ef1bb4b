"""torchport: from a PyTorch training script to a served, verified endpoint.

import torchport
model = torchport.load("model_store/linear-1.0.mar")
model.predict([4.0])                                # [14.17]
"""

from torchport.datasets import PackagedData
from torchport.errors import TorchportError
from torchport.loading import ArchivedModel, load
from torchport.recipe import Example, Recipe, Request, Serving
from torchport_runtime import ImageTransform, Signature, TensorSpec

__version__ = "0.1.0"

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
