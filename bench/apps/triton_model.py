"""The mean of magnitudes for Triton's Python backend, as its documentation has it; Triton runs this file.

Requests that came together become one batch, as in torchport serve.
"""

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = f"{args['model_repository']}/{args['model_version']}/main.onnx"
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        (y,) = self.session.run(["y"], {"x": inputs[0] if len(inputs) == 1 else np.concatenate(inputs)})
        ends = np.cumsum([len(x) for x in inputs])[:-1]
        return [triton.InferenceResponse([triton.Tensor("y", rows)]) for rows in np.split(y, ends)]
