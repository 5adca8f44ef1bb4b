"""The runtime in every archive: handler base class, backends, preprocessing.

A TorchServe without torchport imports this package from the archive's own folder. Handlers need numpy
and, for images, pillow; torch or onnxruntime are needed by the backend that the archive names. The package
knows nothing of the library that made the archive.

    from torchport_runtime import Handler

    class Doubler(Handler):
        def decode(self, request):
            return {"x": np.array([request.json()], np.float32)}

        def encode(self, request, outputs):
            return outputs["y"].tolist()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchport_runtime.errors import BackendError, BadRequest, SignatureError, TorchportError
    from torchport_runtime.explain import heat_map, integrated_gradients
    from torchport_runtime.handler import Handler
    from torchport_runtime.images import ImageTransform, decode_image
    from torchport_runtime.options import BackendOptions
    from torchport_runtime.requests.arrays import array_format, read_arrays, write_arrays
    from torchport_runtime.requests.request import Answer, InferenceRequest
    from torchport_runtime.requests.tensors import TensorRequest, run_tensors
    from torchport_runtime.signature import Signature, TensorSpec
    from torchport_runtime.streaming import LiveRow

# Imported when they are asked for: a worker answers sooner without the modules that its handler does not
# use, and the library reads options and errors of this package where numpy would be imported for nothing.
_HOMES = {
    "Answer": "torchport_runtime.requests.request",
    "BackendError": "torchport_runtime.errors",
    "BackendOptions": "torchport_runtime.options",
    "BadRequest": "torchport_runtime.errors",
    "Handler": "torchport_runtime.handler",
    "ImageTransform": "torchport_runtime.images",
    "InferenceRequest": "torchport_runtime.requests.request",
    "LiveRow": "torchport_runtime.streaming",
    "Signature": "torchport_runtime.signature",
    "SignatureError": "torchport_runtime.errors",
    "TensorRequest": "torchport_runtime.requests.tensors",
    "TensorSpec": "torchport_runtime.signature",
    "TorchportError": "torchport_runtime.errors",
    "array_format": "torchport_runtime.requests.arrays",
    "decode_image": "torchport_runtime.images",
    "heat_map": "torchport_runtime.explain",
    "integrated_gradients": "torchport_runtime.explain",
    "read_arrays": "torchport_runtime.requests.arrays",
    "run_tensors": "torchport_runtime.requests.tensors",
    "write_arrays": "torchport_runtime.requests.arrays",
}

_MODULES = ("backends", "errors", "explain", "handler", "images", "options", "requests", "signature")
"""Modules that handlers may use as attributes, as in `runtime.images`, and need not have imported."""

__all__ = [
    "Answer",
    "BackendError",
    "BackendOptions",
    "BadRequest",
    "Handler",
    "ImageTransform",
    "InferenceRequest",
    "LiveRow",
    "Signature",
    "SignatureError",
    "TensorRequest",
    "TensorSpec",
    "TorchportError",
    "array_format",
    "decode_image",
    "heat_map",
    "integrated_gradients",
    "read_arrays",
    "run_tensors",
    "write_arrays",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"torchport_runtime.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'torchport_runtime' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
