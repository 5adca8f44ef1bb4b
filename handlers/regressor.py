"""Numbers in, numbers out: one row, several rows, or named inputs, as JSON.

curl --json '[4.0]' http://127.0.0.1:8080/predictions/linear                          # [14.17]
curl --json '{"instances": [[4.0], [5.0]]}' http://127.0.0.1:8080/predictions/linear   # [[14.17], [17.22]]
"""

from typing import Any

import numpy as np

import torchport_runtime as runtime


class Regressor(runtime.Handler):
    """A model with one output answers with its values; one with several, with an object of them."""

    def encode(self, request: runtime.InferenceRequest, outputs: dict[str, np.ndarray]) -> Any:
        one_row = self.signature.batch_dim is not None and not request.batched
        values = {name: (array[0] if one_row else array).tolist() for name, array in outputs.items()}
        return values if len(values) > 1 else next(iter(values.values()))
