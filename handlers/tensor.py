"""Serves any model of one graph: tensors in, tensors out.

    curl --json '{"tokens": [[5, 6, 7]]}' http://127.0.0.1:8080/predictions/NAME     # [[0.1, 2.3]]
    curl -T inputs.npz -o outputs.npz http://127.0.0.1:8080/predictions/NAME
    curl -F data=@inputs.npz -F output=json http://127.0.0.1:8080/predictions/NAME

A request is JSON or one of numpy's files. JSON is one row, several, or `{"instances": [...]}`, with
inputs by name if there are several. An `.npy` file is the only input, an `.npz` file names the inputs.
Files have the batch's dimension and the model's dtypes. Inputs whose spec has a default may be left
out.

Several outputs are answered by name: `{"logits": [...], "state": [...]}`. The answer has the form of
the request: JSON for JSON, `.npz` for `.npz`, `.npy` for `.npy` if there is one output. The form's
field `output` (json, npy, npz) overrides it. NaN and Inf, which JSON cannot say, may be among the
outputs of a file.
"""

from typing import Any

import numpy as np

import torchport_runtime as runtime

FORMATS = ("json", "npy", "npz")


class Tensor(runtime.Handler):
    """Serves every model of one graph."""

    decides = "number"

    def decode(self, request: runtime.InferenceRequest) -> dict[str, np.ndarray]:
        request.refuse_unknown_fields(["output"])
        output = self.output(request)
        if output == "npy" and len(self.signature.outputs) > 1:
            raise runtime.BadRequest(
                f"output=npy: this model gives {list(self.signature.outputs)}: ask for npz"
            )
        if runtime.array_format(request.body) is None:
            return request.tensors(self.signature)
        request.batched = True
        return runtime.read_arrays(request.body, self.signature)

    def encode(self, request: runtime.InferenceRequest, outputs: dict[str, np.ndarray]) -> Any:
        kind = self.output(request)
        if kind == "json":
            return request.values(self.signature, outputs)
        content_type = "application/x-npy" if kind == "npy" else "application/x-npz"
        return runtime.Answer(runtime.write_arrays(outputs, kind), content_type)

    def output(self, request: runtime.InferenceRequest) -> str:
        """The format of the answer: the requested one, or else the body's."""
        given = request.text_param("output", "")
        if given:
            if given not in FORMATS:
                raise runtime.BadRequest(f"output={given!r}: one of {', '.join(FORMATS)} is expected")
            return given
        kind = runtime.array_format(request.body) or "json"
        return "npz" if kind == "npy" and len(self.signature.outputs) > 1 else kind
