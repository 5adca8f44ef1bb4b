"""Tensors in, tensors out, for any model: JSON, or numpy's files.

    curl --json '{"tokens": [[5, 6, 7]]}' http://127.0.0.1:8080/predictions/NAME     # [[0.1, 2.3]]
    curl -T inputs.npz -o outputs.npz http://127.0.0.1:8080/predictions/NAME
    curl -F data=@inputs.npz -F output=json http://127.0.0.1:8080/predictions/NAME

JSON is one row, several, or `{"instances": [...]}`, and inputs by name where there are several. An
`.npy` file is the only input, an `.npz` names them; both with the batch's dimension, in the model's
dtypes. Inputs whose spec has a default may be left out. Outputs come by name where there are several:
`{"logits": [...], "state": [...]}`. The answer is in the form of the request: JSON for JSON, `.npz` for
`.npz`, `.npy` for `.npy` where there is one output; the form's field `output` (json, npy, npz) says
otherwise. NaN and Inf, which JSON cannot say, may be among the outputs of a file.
"""

from typing import Any

import numpy as np

import torchport_runtime as runtime

FORMATS = ("json", "npy", "npz")


class Tensor(runtime.Handler):
    """For every model of one graph."""

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
        """The format of the answer: what the request asks for, else that of its body."""
        given = request.text_param("output", "")
        if given:
            if given not in FORMATS:
                raise runtime.BadRequest(f"output={given!r}: one of {', '.join(FORMATS)} is expected")
            return given
        kind = runtime.array_format(request.body) or "json"
        return "npz" if kind == "npy" and len(self.signature.outputs) > 1 else kind
