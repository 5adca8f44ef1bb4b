"""The runtime in every archive: handler base class, backends, preprocessing.

A TorchServe without torchport imports this package from the archive's own folder. Importing it needs numpy
and pillow only; torch or onnxruntime are needed by the backend that the archive names. The package knows
nothing of the library that made the archive.

    from torchport_runtime import Handler

    class Doubler(Handler):
        def decode(self, request):
            return {"x": np.array([request.json()], np.float32)}

        def encode(self, request, outputs):
            return outputs["y"].tolist()
"""

from torchport_runtime.errors import BackendError, BadRequest, SignatureError, TorchportError
from torchport_runtime.explain import heat_map, integrated_gradients
from torchport_runtime.handler import Handler
from torchport_runtime.images import ImageTransform, decode_image
from torchport_runtime.options import BackendOptions
from torchport_runtime.requests.arrays import array_format, read_arrays, write_arrays
from torchport_runtime.requests.request import Answer, InferenceRequest
from torchport_runtime.requests.tensors import TensorRequest, run_tensors
from torchport_runtime.signature import Signature, TensorSpec

__all__ = [
    "Answer",
    "BackendError",
    "BackendOptions",
    "BadRequest",
    "Handler",
    "ImageTransform",
    "InferenceRequest",
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
