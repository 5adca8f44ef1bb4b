"""Batches that are read and written as one array: never an answer that row by row would not give."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchport_runtime import BackendError, Handler, InferenceRequest, Signature, TensorSpec
from torchport_runtime.requests.plain_rows import read_plain_rows, write_plain_rows

FEATURES = 2

numbers = st.one_of(
    st.integers(-3, 3),
    st.floats(-4, 4, width=32),
    st.sampled_from([13, 2**53 + 1, 2**63, -(2**63), 2**70, 1e39, 3.5e38, float("nan"), float("inf"), -0.0]),
)
values = st.one_of(numbers, st.sampled_from([True, None, "1", [1.0], {}]))
plain = st.lists(numbers, min_size=FEATURES, max_size=FEATURES)
odd = st.one_of(
    st.lists(values, max_size=3),
    st.lists(plain, max_size=2),
    st.fixed_dictionaries({"x": plain}),
    st.sampled_from([b"[1, 2]", b"[1,", "", None, 1.0]),
)
fields = st.one_of(
    st.fixed_dictionaries({"body": st.one_of(plain, plain, plain, odd)}),
    st.fixed_dictionaries({"data": plain}),
    st.fixed_dictionaries({"body": plain, "k": st.just(b"3")}),
)


class Doubler:
    """A graph of any dtype: adds the row to itself; 26 is more than it can bear, and 4 becomes NaN."""

    device = provider = "test"

    def run(self, inputs):
        x = inputs["x"]
        if (x == 13).any():
            raise BackendError("thirteen")
        y = (x + x).astype(np.float32)
        return {"y": np.where(y == 4, np.nan, y)}


class Summed(Handler):
    def encode(self, request, outputs):
        return {"sum": float(outputs["y"].sum()), "rows": len(outputs["y"])}


class Context:
    def __init__(self):
        self.statuses, self.types = {}, {}

    def get_request_header(self, index, name):
        return None

    def get_all_request_header(self, index):
        return {}

    def set_response_content_type(self, index, value):
        self.types[index] = value

    def set_response_status(self, code, phrase, idx):
        self.statuses[idx] = code


def signature(spec, batch=(1, 64)):
    outputs = {"y": TensorSpec("float32", ("batch", FEATURES))}
    return Signature(inputs={"x": spec}, outputs=outputs, dims={"batch": batch})


def made(kind, spec, **dims):
    handler = kind()
    handler.signatures = {"main": signature(spec, **dims)}
    handler.backends = {"main": Doubler()}
    return handler


def ask(handler, rows):
    context = Context()
    with np.errstate(over="ignore", invalid="ignore"):
        bodies = handler.handle(rows, context)
    return [(body, context.types[i], context.statuses.get(i, 200)) for i, body in enumerate(bodies)]


SPECS = {
    "float32": TensorSpec("float32", ("batch", FEATURES)),
    "float64": TensorSpec("float64", ("batch", FEATURES)),
    "int64": TensorSpec("int64", ("batch", FEATURES)),
    "bounded": TensorSpec("float32", ("batch", FEATURES), low=-2, high=2),
}


@pytest.mark.parametrize("kind", [Handler, Summed])
@pytest.mark.parametrize("name", SPECS)
@given(rows=st.lists(fields, min_size=2, max_size=5))
def test_a_batch_gets_what_each_of_its_requests_gets_alone(kind, name, rows):
    handler = made(kind, SPECS[name], batch=(1, 3))
    assert ask(handler, rows) == [ask(handler, [row])[0] for row in rows]


def plain_requests(*bodies):
    return [InferenceRequest({"body": body}) for body in bodies]


def test_plain_requests_are_one_array():
    array = read_plain_rows(plain_requests([1, 2.5], [3, 4]), signature(SPECS["float32"]))["x"]
    assert array.dtype == np.float32
    assert array.tolist() == [[1.0, 2.5], [3.0, 4.0]]
    assert write_plain_rows({"y": array}) == ["[1.0, 2.5]", "[3.0, 4.0]"]


@pytest.mark.parametrize(
    "body", [[True, 1.0], [[1.0, 2.0]], {"x": [1.0, 2.0]}, [1.0], "[1, 2]", [1.0, 2.0**53]]
)
def test_anything_else_goes_row_by_row(body):
    assert read_plain_rows(plain_requests([1.0, 2.0], body), signature(SPECS["float32"])) is None


def test_a_request_for_an_explanation_goes_row_by_row():
    asks = InferenceRequest({"body": [1.0, 2.0]}, {"explain": "True"})
    assert read_plain_rows([*plain_requests([1.0, 2.0]), asks], signature(SPECS["float32"])) is None


def test_what_json_cannot_say_is_written_row_by_row():
    assert write_plain_rows({"y": np.array([[1.0], [np.inf]])}) is None
    assert write_plain_rows({"y": np.ones((2, 1, 1))}) is None
    assert write_plain_rows({"y": np.ones((2, 1)), "z": np.ones((2, 1))}) is None


def test_a_handler_that_reads_for_itself_is_asked(monkeypatch):
    class Own(Handler):
        def decode(self, request):
            return {"x": np.array([[7.0, 7.0]], np.float32)}

    answers = ask(made(Own, SPECS["float32"]), [{"body": [1.0, 2.0]}] * 2)
    assert [json.loads(body) for body, _, _ in answers] == [[14.0, 14.0]] * 2
