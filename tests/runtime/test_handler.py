"""The handler's promise to a batch: one answer per request, and a bad row hurts nobody else."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from torchport.recipe.handler import handler_class
from torchport.recipe.shipped import packaged_folder
from torchport_runtime import BackendError, Handler, ImageTransform, InferenceRequest, Signature, TensorSpec


class Context:
    """What TorchServe gives a handler, as far as ours asks for it."""

    def __init__(self, headers=None):
        self.headers = headers or {}
        self.statuses, self.types = {}, {}

    def get_all_request_header(self, index):
        return self.headers

    def set_response_content_type(self, index, value):
        self.types[index] = value

    def set_response_status(self, code, phrase, idx):
        self.statuses[idx] = (code, phrase)


class Recorder:
    """A graph that multiplies by 2, remembers its batches and fails on 13."""

    device = provider = "test"

    def __init__(self):
        self.batches = []

    def run(self, inputs):
        x = inputs["x"]
        self.batches.append(x.shape)
        if (x == 13).any():
            raise BackendError("thirteen")
        with np.errstate(over="ignore"):
            return {"y": x * 2}


def handler(kind="regressor", inputs=("batch", 1), dims=None):
    made = handler_class(packaged_folder("handlers") / f"{kind}.py")()
    made.signatures = {
        "main": Signature(
            inputs={"x": TensorSpec("float32", inputs)},
            outputs={"y": TensorSpec("float32", inputs)},
            dims=dims or {},
        )
    }
    made.backends = {"main": Recorder()}
    return made


def ask(made, *bodies, headers=None):
    context = Context(headers)
    answers = made.handle([{"body": body} for body in bodies], context)
    return [json.loads(answer) for answer in answers], context


def test_requests_share_one_run_and_get_their_own_answers():
    made = handler()
    answers, context = ask(made, [1.0], {"instances": [[2.0], [3.0]]}, [[4.0]])
    assert answers == [[2.0], [[4.0], [6.0]], [[8.0]]]
    assert made.backends["main"].batches == [(4, 1)]
    assert context.statuses == {}
    assert set(context.types.values()) == {"application/json"}


def test_a_bad_row_gets_its_own_4xx():
    answers, context = ask(handler(), [1.0], ["one"], [1.0, 2.0], None, [5.0])
    assert [answers[0], answers[4]] == [[2.0], [10.0]]
    assert context.statuses == dict.fromkeys((1, 2, 3), (400, "Bad Request"))
    assert all(answers[i]["code"] == 400 and answers[i]["message"] for i in (1, 2, 3))


def test_a_row_that_breaks_the_model_fails_alone(caplog):
    answers, context = ask(handler(), [1.0], [13.0], [2.0])
    assert [answers[0], answers[2]] == [[2.0], [4.0]]
    assert context.statuses == {1: (500, "Internal Server Error")}
    assert "thirteen" not in json.dumps(answers[1])
    assert "thirteen" in caplog.text


def test_more_rows_than_the_batch_allows_run_in_pieces():
    made = handler(dims={"batch": (1, 4)})
    answers, _ = ask(made, {"instances": [[float(i)] for i in range(10)]})
    assert answers == [[[2.0 * i] for i in range(10)]]
    assert made.backends["main"].batches == [(4, 1), (4, 1), (2, 1)]


def test_rows_of_different_lengths_run_apart():
    made = handler(inputs=("batch", "time"), dims={"time": (1, 9)})
    answers, _ = ask(made, [1.0, 2.0], [1.0], [3.0, 4.0])
    assert answers == [[2.0, 4.0], [2.0], [6.0, 8.0]]
    assert sorted(made.backends["main"].batches) == [(1, 1), (2, 2)]


def test_a_model_without_a_batch_dimension_takes_one_request_at_a_time():
    made = handler(inputs=(2,))
    answers, _ = ask(made, [1.0, 2.0], [3.0, 4.0])
    assert answers == [[2.0, 4.0], [6.0, 8.0]]


def test_an_answer_that_is_not_finite_is_said_so():
    answers, context = ask(handler(), [3e38])
    assert context.statuses == {0: (422, "Unprocessable Entity")}
    assert "NaN or Inf" in answers[0]["message"]


def test_a_handler_that_breaks_on_one_row_hurts_no_other(caplog):
    class Broken(Handler):
        def decode(self, request):
            if request.body == "break":
                raise KeyError("oops")
            return {"x": np.ones((1, 1), np.float32)}

        def encode(self, request, outputs):
            return outputs["y"].tolist()

    made = Broken()
    made.signatures, made.backends = handler().signatures, {"main": Recorder()}
    answers, context = ask(made, "break", "go")
    assert answers[1] == [[2.0]]
    assert context.statuses[0][0] == 500
    assert "oops" not in answers[0]["message"]
    assert "oops" in caplog.text


def test_explanations_are_refused_with_a_reason():
    answers, context = ask(handler(), [1.0], headers={"explain": "True"})
    assert context.statuses[0][0] == 400
    assert "explanations" in answers[0]["message"]


def png(shade):
    buffer = io.BytesIO()
    Image.new("L", (9, 7), shade).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def classifier(tmp_path):
    made = handler_class(packaged_folder("handlers") / "image_classifier.py")()
    made.signatures = {
        "main": Signature(
            inputs={"x": TensorSpec("float32", ("batch", 1, 2, 3))},
            outputs={"y": TensorSpec("float32", ("batch", 3))},
        )
    }
    made.options = {
        "image": ImageTransform(size=(2, 3), mode="L", mean=(0.0,), std=(1.0,)).to_json(),
        "labels": ["dark", "grey", "light"],
        "top_k": 2,
    }

    class Brightness:
        device = provider = "test"

        def run(self, inputs):
            shade = inputs["x"].mean(axis=(1, 2, 3))
            return {"y": np.stack([-shade, np.zeros_like(shade), shade], axis=1) * 9}

    made.backends = {"main": Brightness()}
    made.setup()
    return made


def test_labels_come_best_first(classifier):
    request = InferenceRequest({"body": png(255)})
    (answer,) = classifier.answer([request])
    assert list(answer.value) == ["light", "grey"]
    np.testing.assert_allclose(answer.value["light"], 1 / (1 + np.exp(-9) + np.exp(-18)))


def test_k_is_a_parameter_and_a_wrong_one_fails_alone(classifier):
    rows = [{"body": png(255), "k": b"1"}, {"body": png(0), "k": b"4"}, {"body": png(0), "k": b"3"}]
    context = Context()
    answers = [json.loads(a) for a in classifier.handle(rows, context)]
    assert list(answers[0]) == ["light"]
    assert list(answers[2]) == ["dark", "grey", "light"]
    assert context.statuses == {1: (400, "Bad Request")}


def test_labels_from_an_asset(classifier, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    classifier.assets = tmp_path
    classifier.options = {"image": classifier.options["image"]}
    classifier.setup()
    assert classifier.labels == ["a", "b", "c"]
