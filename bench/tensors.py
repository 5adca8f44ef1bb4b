"""Requests of tensors by the Open Inference Protocol, over REST with its binary extension and over gRPC.

question, call = rest_question(server, rows), grpc_call(server, rows)
require_means("Triton", server, rows)        # BenchmarkError: it answers something else.
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import numpy as np

from bench.contenders import Server
from bench.errors import BenchmarkError
from bench.grpc_load import Call, invoke
from bench.load import Question, ask
from torchport.server.grpc.messages import open_inference

MODEL = "mean_magnitude"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
TOLERANCE = 1e-6
"""Relative: the same graph by the same runtime, and the reference sums in another order."""


def rest_question(server: Server, rows: np.ndarray) -> Question:
    """The rows as bytes after a head of JSON, and bytes wanted back."""
    content = rows.tobytes()
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP32"}
    asked = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(content)}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(asked).encode()
    return Question(
        url=f"http://{urlsplit(server.url).netloc}/v2/models/{MODEL}/infer",
        body=head + content,
        content_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(head))},
        pid=server.pid,
    )


def grpc_call(server: Server, rows: np.ndarray) -> Call:
    """The rows in `raw_input_contents`."""
    message = open_inference.ModelInferRequest(
        model_name=MODEL,
        inputs=[{"name": "x", "shape": rows.shape, "datatype": "FP32"}],
        outputs=[{"name": "y"}],
        raw_input_contents=[rows.tobytes()],
    )
    return Call(target=server.grpc, method=METHOD, message=message.SerializeToString(), pid=server.pid)


def require_means(name: str, server: Server, rows: np.ndarray) -> None:
    """One answer by each protocol.

    Raises:
        BenchmarkError: it is refused, or these are not the rows' mean magnitudes.
    """
    size = 4 * len(rows)
    # The bytes of the answer's only tensor come last.
    answers = {"REST": ask(rest_question(server, rows))[-size:]}
    response = open_inference.ModelInferResponse.FromString(invoke(grpc_call(server, rows)))
    answers["gRPC"] = b"".join(response.raw_output_contents)
    expected = np.abs(rows.astype(np.float64)).mean(1)
    for protocol, content in answers.items():
        found = np.frombuffer(content, np.float32) if len(content) == size else np.empty(0)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=TOLERANCE, atol=0):
            raise BenchmarkError(f"{name} answers {found} over {protocol}: {expected} is the mean magnitude")
