"""Computes numbers from numbers: one row, several rows, or named inputs, as JSON.

curl --json '[4.0]' http://127.0.0.1:8080/predictions/linear                          # [14.17]
curl --json '{"instances": [[4.0], [5.0]]}' http://127.0.0.1:8080/predictions/linear   # [[14.17], [17.22]]
"""

import torchport_runtime as runtime


class Regressor(runtime.Handler):
    """Answers with the values of the model's output.

    With several outputs, the answer is an object of them.
    """

    decides = "number"
