"""One server for all tests of the protocol, and two ways to ask it."""

import shutil

import pytest
import requests

from tests.server.api.open_inference.tensors import written
from tests.server.archives import write_archive
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

# A graph for each dtype, which gives back what it gets, and two that are not so well-behaved.
MIRROR = """
    from types import SimpleNamespace

    import numpy as np

    from torchport_runtime.signature import DTYPES, Signature, TensorSpec


    def backend(answer):
        return SimpleNamespace(provider="", run=lambda inputs: {"y": answer(inputs["x"])})


    def signature(dtype, shape=("batch", 2)):
        spec = TensorSpec(dtype, shape)
        return Signature(inputs={"x": spec}, outputs={"y": spec}, dims={"batch": (1, 100000)})


    class Handler:
        def initialize(self, context):
            self.signatures = {dtype: signature(dtype) for dtype in DTYPES} | {
                "main": signature("float32"), "nan": signature("float32"), "broken": signature("float32"),
                "scalar": Signature(inputs={"x": TensorSpec("float64", ())},
                                    outputs={"y": TensorSpec("float64", ())}),
            }
            self.backends = {name: backend(lambda x: x) for name in self.signatures}
            self.backends["nan"] = backend(lambda x: x * np.float32("nan"))
            self.backends["broken"] = backend(lambda x: 1 / 0)

        def handle(self, data, context):
            return ["asked by its handler"] * len(data)
"""


@pytest.fixture(scope="package")
def server(linear_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("oip")
    store = folder / "store"
    store.mkdir()
    shutil.copy(linear_archive, store)
    config = {"minWorkers": 1, "maxWorkers": 1}
    write_archive(store, "mirror", MIRROR, config=config)
    write_archive(
        store, "plain", "def handle(data, context):\n    return data and [data[0]['body']]\n", config=config
    )
    with start(Store(store), folder / "run", settings={"enable_grpc": "false"}) as server:
        yield server


@pytest.fixture(scope="package")
def ask(server):
    """Send a request; the status, and the JSON of the answer."""
    with requests.Session() as session:

        def send(method, path, **options):
            answer = session.request(method, f"{server.urls['inference']}{path}", timeout=30, **options)
            return answer.status_code, answer.json()

        yield send


@pytest.fixture(scope="package")
def infer(ask):
    def send(request, model="mirror", **options):
        body = request if isinstance(request, bytes) else written(request)
        return ask("POST", f"/v2/models/{model}/infer", data=body, **options)

    return send
