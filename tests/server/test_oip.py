"""The Open Inference Protocol over REST: tensors of every datatype in and out, as JSON and as bytes, and
whatever a client can get wrong answered with what is wrong."""

import json
import shutil

import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.archives import write_archive
from torchport.loading import load
from torchport.server_process import start
from torchport.store import Store

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

VALUES = {
    "BOOL": [True, False, False, True],
    "UINT8": [0, 1, 254, 255],
    "INT8": [-128, -1, 0, 127],
    "INT16": [-(2**15), -1, 0, 2**15 - 1],
    "INT32": [-(2**31), -1, 0, 2**31 - 1],
    "INT64": [-(2**63), -1, 0, 2**63 - 1],
    "FP16": [0.5, -2, 65504.0, 0.0],
    "FP32": [0.1, -2, 3.4e38, 16777216.0],
    "FP64": [0.1, -2, 1.7e308, 9007199254740992.0],
}
DTYPES = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    **{name: name.lower() for name in ("UINT8", "INT8", "INT16", "INT32", "INT64")},
}


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def ask(server):
    """Send a request; the status, and the JSON of the answer."""
    with requests.Session() as session:

        def send(method, path, **options):
            answer = session.request(method, f"{server.urls['inference']}{path}", timeout=30, **options)
            return answer.status_code, answer.json()

        yield send


@pytest.fixture(scope="module")
def infer(ask):
    def send(request, model="mirror", **options):
        body = request if isinstance(request, bytes) else written(request)
        return ask("POST", f"/v2/models/{model}/infer", data=body, **options)

    return send


HUGE = "a number of 5000 digits"


def written(request):
    return json.dumps(request).replace(f'"{HUGE}"', "9" * 5000).encode()


def tensor(values=(1.5, 2.5), shape=(1, 2), datatype="FP32", name="x", **more):
    data = {} if values is None else {"data": list(values)}
    return {"name": name, "shape": list(shape), "datatype": datatype, **data, **more}


def test_what_the_server_and_its_models_say_of_themselves(ask):
    status, said = ask("GET", "/v2")
    assert status == 200
    assert (said["name"], said["extensions"]) == ("torchport", ["binary_tensor_data"])
    assert said["version"]
    assert ask("GET", "/v2/health/live") == (200, {"live": True})
    assert ask("GET", "/v2/health/ready") == (200, {"ready": True})
    for path in ("/v2/models/linear", "/v2/models/linear/versions/1.0"):
        assert ask("GET", path) == (
            200,
            {
                "name": "linear",
                "versions": ["1.0"],
                "platform": "onnx_onnxv1",
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
                "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
            },
        )
        assert ask("GET", f"{path}/ready") == (200, {"name": "linear", "ready": True})


def test_the_handler_of_an_archive_without_a_signature_gets_the_body(ask, infer):
    status, said = ask("GET", "/v2/models/plain")
    assert (status, said["inputs"], said["outputs"], said["platform"]) == (200, [], [], "")
    asked = {"inputs": [tensor()]}
    assert infer(asked, "plain") == (200, asked)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/linear/infer", 405),
        ("PUT", "/v2/models/linear/infer", 405),
        ("POST", "/v2/models/linear", 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/health/live", 405),
        ("POST", "/v2/health/ready", 405),
        ("POST", "/v2/models/linear/ready", 405),
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/none/ready", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("GET", "/v2/models/linear/versions/9", 404),
        ("POST", "/v2/models/linear/versions/9/infer", 404),
        ("POST", "/v2/models/linear/explain", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/linear/versions", 404),
        ("GET", "/v2/health", 404),
        ("GET", "/v2/repository/index", 404),
    ],
)
def test_what_is_not_there(ask, method, path, status):
    found, said = ask(method, path)
    assert (found, said["code"]) == (status, status)
    assert said["type"]
    assert said["message"]


def test_the_model_computes_what_its_archive_does(infer, linear_archive):
    request = {
        "id": "seven",
        "inputs": [{"name": "x", "shape": [3, 1], "datatype": "FP32", "data": [[4.0], [5.0], [-6.5]]}],
        "outputs": [{"name": "y"}],
    }
    status, said = infer(request, "linear")
    with load(linear_archive) as model:
        expected = [model.predict([x])[0] for x in (4.0, 5.0, -6.5)]
    assert status == 200
    assert (said["model_name"], said["model_version"], said["id"]) == ("linear", "1.0", "seven")
    (output,) = said["outputs"]
    assert (output["name"], output["shape"], output["datatype"]) == ("y", [3, 1], "FP32")
    # Together or one by one: float32 either way.
    np.testing.assert_allclose(output["data"], np.ravel(expected), rtol=1e-6)


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("nested", [False, True])
def test_json_of_every_datatype(infer, datatype, nested):
    values = VALUES[datatype]
    data = [values[:2], values[2:]] if nested else values
    request = {
        "parameters": {"graph": DTYPES[datatype]},
        "inputs": [tensor(data, (2, 2), datatype)],
    }
    status, said = infer(request)
    assert status == 200, said
    (output,) = said["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype, [2, 2])
    assert output["data"] == np.array(values, DTYPES[datatype]).tolist()


def test_a_scalar(infer):
    request = {"parameters": {"graph": "scalar"}, "inputs": [tensor([2.5], [], "FP64")]}
    status, said = infer(request)
    assert (status, said["outputs"][0]["data"], said["outputs"][0]["shape"]) == (200, [2.5], [])


def with_bytes(request, *parts):
    """A body of the binary extension, and its header."""
    head = written(request)
    return b"".join([head, *parts]), {"Inference-Header-Content-Length": str(len(head))}


def binary_input(data, shape, datatype="FP32", name="x"):
    return tensor(None, shape, datatype, name, parameters={"binary_data_size": len(data)})


@pytest.mark.parametrize("datatype", VALUES)
def test_bytes_of_every_datatype_in_and_out(server, datatype):
    data = np.array(VALUES[datatype], DTYPES[datatype]).tobytes()
    request = {
        "parameters": {"graph": DTYPES[datatype], "binary_data_output": True},
        "inputs": [binary_input(data, (2, 2), datatype)],
    }
    body, headers = with_bytes(request, data)
    answer = requests.post(
        f"{server.urls['inference']}/v2/models/mirror/infer", data=body, headers=headers, timeout=30
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/octet-stream"
    length = int(answer.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(answer.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": len(data)}
    assert "data" not in output
    assert answer.content[length:] == data


def test_an_output_says_for_itself_whether_it_is_wanted_as_bytes(server, infer):
    data = np.array([1, 2], np.float32).tobytes()
    request = {
        "parameters": {"binary_data_output": True},
        "inputs": [binary_input(data, (1, 2))],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
    }
    body, headers = with_bytes(request, data)
    status, said = infer(body, headers=headers)
    assert (status, said["outputs"][0]["data"]) == (200, [1.0, 2.0])
    wanted = {"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    answer = requests.post(f"{server.urls['inference']}/v2/models/mirror/infer", json=wanted, timeout=30)
    assert answer.content.endswith(np.array([1.5, 2.5], np.float32).tobytes())


def test_an_answer_that_json_cannot_say(server, infer):
    request = {"parameters": {"graph": "nan"}, "inputs": [tensor()]}
    status, said = infer(request)
    assert (status, said["code"]) == (422, 422)
    assert "NaN" in said["message"]
    request["parameters"]["binary_data_output"] = True
    answer = requests.post(f"{server.urls['inference']}/v2/models/mirror/infer", json=request, timeout=30)
    assert np.isnan(np.frombuffer(answer.content[-8:], np.float32)).all()


def test_a_model_that_fails_is_a_500(infer):
    status, said = infer({"parameters": {"graph": "broken"}, "inputs": [tensor()]})
    assert (status, said["type"]) == (500, "InternalServerException")


X = tensor()
WRONG = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[1]",
    "no text": b'{"inputs": "\xff"}',
    "deeper than can be read": b"[" * 100_000,
    "NaN": b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [NaN, 1]}]}',
    "no inputs": {},
    "no input": {"inputs": []},
    "inputs of another kind": {"inputs": {"x": [1]}},
    "an id that is no text": {"id": 7, "inputs": [X]},
    "parameters that are none": {"parameters": [], "inputs": [X]},
    "no name": {"inputs": [{"shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]},
    "an unknown name": {"inputs": [tensor(name="z")]},
    "the same name twice": {"inputs": [X, X]},
    "too many inputs": {"inputs": [tensor(name=f"x{i}") for i in range(1001)]},
    "an unknown datatype": {"inputs": [tensor(datatype="FLOAT")]},
    "another datatype than the model's": {"inputs": [tensor([1, 2], datatype="INT64")]},
    "text": {"inputs": [tensor(["a", "b"], datatype="BYTES")]},
    "text where numbers belong": {"inputs": [tensor(["1", "2"])]},
    "true where a number belongs": {"inputs": [tensor([True, 2])]},
    "null where a number belongs": {"inputs": [tensor([None, 2])]},
    "a number where a truth belongs": {
        "parameters": {"graph": "bool"},
        "inputs": [tensor([0, 1], datatype="BOOL")],
    },
    "half a whole number": {"parameters": {"graph": "int64"}, "inputs": [tensor([0.5, 1], datatype="INT64")]},
    "below zero": {"parameters": {"graph": "uint8"}, "inputs": [tensor([-1, 1], datatype="UINT8")]},
    "more than fits": {"parameters": {"graph": "int8"}, "inputs": [tensor([128, 1], datatype="INT8")]},
    "more than 64 bits": {"parameters": {"graph": "int64"}, "inputs": [tensor([2**63, 1], datatype="INT64")]},
    "more than a float holds": {"inputs": [tensor([1e39, 1])]},
    "more than a half holds": {
        "parameters": {"graph": "float16"},
        "inputs": [tensor([65536, 1], datatype="FP16")],
    },
    "a whole number that no float holds": {"inputs": [tensor([HUGE, 1])]},
    "too many numbers": {"inputs": [tensor([1, 2, 3])]},
    "too few numbers": {"inputs": [tensor([1])]},
    "no numbers": {"inputs": [tensor([])]},
    "no data": {"inputs": [tensor(None)]},
    "data that is no array": {"inputs": [tensor(None, data=1.5)]},
    "nested otherwise than its shape": {"inputs": [tensor([[1], [2]])]},
    "nested too deep": {"inputs": [tensor([[[1], [2]]])]},
    "ragged": {"inputs": [tensor([[1, 2], [3]], (2, 2))]},
    "no shape": {"inputs": [{"name": "x", "datatype": "FP32", "data": [1, 2]}]},
    "a shape of text": {"inputs": [tensor(shape=["1", "2"])]},
    "a size below zero": {"inputs": [tensor(shape=(-1, -2))]},
    "a size of zero": {"inputs": [tensor([], shape=(0, 2))]},
    "sizes beyond all bounds": {"inputs": [tensor(shape=(2**62, 2**62))]},
    "a size that no machine knows": {"inputs": [tensor(shape=(HUGE, 2))]},
    "dimensions beyond all bounds": {"inputs": [tensor(shape=[1] * 100_000 + [2])]},
    "another shape than the model's": {"inputs": [tensor([1, 2, 3], (1, 3))]},
    "an unknown output": {"inputs": [X], "outputs": [{"name": "z"}]},
    "the same output twice": {"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]},
    "an unknown graph": {"parameters": {"graph": "none"}, "inputs": [X]},
    "a graph that is no text": {"parameters": {"graph": 1}, "inputs": [X]},
    "a flag that is none": {"parameters": {"binary_data_output": 1}, "inputs": [X]},
    "an output's flag that is none": {
        "inputs": [X],
        "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}],
    },
    "an extension that is not there": {
        "inputs": [X],
        "outputs": [{"name": "y", "parameters": {"classification": 1}}],
    },
    "bytes that are nowhere": {"inputs": [binary_input(bytes(8), (1, 2))]},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_request_is_said(infer, case):
    status, said = infer(WRONG[case])
    assert (status, said["code"], said["type"]) == (400, 400, "BadRequestException")
    assert 0 < len(said["message"]) < 1000


EIGHT = bytes(8)
WRONG_BYTES = {
    "fewer than the shape asks for": ({"inputs": [binary_input(EIGHT[:4], (1, 2))]}, EIGHT[:4], None),
    "more than the shape asks for": ({"inputs": [binary_input(EIGHT * 2, (1, 2))]}, EIGHT * 2, None),
    "more than there are": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT[:4], None),
    "bytes that no input owns": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT * 2, None),
    "a length that is no number": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "ten"),
    "a length below zero": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "-1"),
    "no JSON at all": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "0"),
    "a length beyond the body": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "99999"),
    "a length beyond all bounds": ({"inputs": [binary_input(EIGHT, (1, 2))]}, EIGHT, "9" * 5000),
    "both data and bytes": (
        {"inputs": [tensor([1, 2], parameters={"binary_data_size": 8})]},
        EIGHT,
        None,
    ),
    "a size of text": ({"inputs": [tensor(None, parameters={"binary_data_size": "8"})]}, EIGHT, None),
    "a size below zero": ({"inputs": [tensor(None, parameters={"binary_data_size": -8})]}, EIGHT, None),
    "a size beyond all bounds": (
        {"inputs": [tensor(None, parameters={"binary_data_size": HUGE})]},
        EIGHT,
        None,
    ),
    "NaN": (
        {"inputs": [binary_input(EIGHT, (1, 2))]},
        np.array([np.nan, 1], np.float32).tobytes(),
        None,
    ),
    "a truth that is neither": (
        {"parameters": {"graph": "bool"}, "inputs": [binary_input(b"\1\2", (1, 2), "BOOL")]},
        b"\1\2",
        None,
    ),
    "text": ({"inputs": [binary_input(EIGHT, (1, 2), "BYTES")]}, EIGHT, None),
}


@pytest.mark.parametrize("case", WRONG_BYTES)
def test_what_is_wrong_with_bytes_is_said(infer, case):
    request, data, length = WRONG_BYTES[case]
    body, headers = with_bytes(request, data)
    if length is not None:
        headers["Inference-Header-Content-Length"] = length
    status, said = infer(body, headers=headers)
    assert (status, said["code"], said["type"]) == (400, 400, "BadRequestException")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.lists(st.integers(-1, 3), max_size=3) | json_values,
    datatype=st.sampled_from([*VALUES, "BYTES", "BF16", ""]) | json_values,
    data=st.lists(st.floats(allow_nan=False) | st.integers(), max_size=6) | json_values,
    more=st.dictionaries(st.sampled_from(["id", "parameters", "outputs"]), json_values),
)
def test_nothing_that_a_client_sends_is_a_fault_of_the_server(infer, shape, datatype, data, more):
    given = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    status, said = infer({"inputs": [given], **more})
    assert status in (200, 400), said


def test_requests_are_counted_by_the_version_that_they_name(server, ask):
    def counted(version):
        text = requests.get(f"{server.urls['metrics']}/metrics", timeout=30).text
        names = ('model_name="linear"', f'model_version="{version}"', "ts_inference_requests_total")
        return sum(float(line.split()[-1]) for line in text.splitlines() if all(n in line for n in names))

    before = counted("1.0")
    request = {"inputs": [tensor([1.0], (1, 1))]}
    assert ask("POST", "/v2/models/linear/versions/1.0/infer", json=request)[0] == 200
    assert counted("1.0") == before + 1


def test_the_description_names_every_path(ask):
    _, described = ask("GET", "/api-description")
    paths = {path for path in described["paths"] if path.startswith("/v2")}
    models = ["/v2/models/{model_name}", "/v2/models/{model_name}/versions/{model_version}"]
    assert paths == {
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        *(f"{model}{action}" for model in models for action in ("", "/ready", "/infer")),
    }
