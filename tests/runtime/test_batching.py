"""What shares a run: rows joined, padded, cut, and given back to the requests that they came from."""

import numpy as np
import pytest

from torchport_runtime import BadRequest, Handler, InferenceRequest, Signature, SignatureError, TensorSpec

TEXT = Signature(
    inputs={
        "tokens": TensorSpec("int64", ("batch", "time"), low=0, high=99),
        "mask": TensorSpec("bool", ("batch", "time"), default=True),
    },
    outputs={"sum": TensorSpec("float32", ("batch",)), "each": TensorSpec("float32", ("batch", "time"))},
    dims={"time": (1, 8), "batch": (1, 4)},
)


class Sums:
    device = provider = "test"

    def __init__(self):
        self.shapes = []

    def run(self, inputs):
        self.shapes.append(inputs["tokens"].shape)
        each = np.where(inputs["mask"], inputs["tokens"], 0).astype(np.float32)
        return {"sum": each.sum(axis=1), "each": each}


class Reader(Handler):
    padding = {"tokens": 0, "mask": False}

    def encode(self, request, outputs):
        return request.values(self.signatures[request.graph], outputs)


def reader(kind=Reader):
    made = kind()
    made.signatures = {"main": TEXT}
    made.backends = {"main": Sums()}
    return made


def ask(made, *bodies):
    return [answer.value for answer in made.answer([InferenceRequest({"body": body}) for body in bodies])]


def test_requests_of_other_lengths_share_a_run_and_are_cut_again():
    made = reader()
    answers = ask(made, [1, 2, 3], [4], {"instances": [[5, 6], [7, 8]]})
    assert made.backends["main"].shapes == [(4, 3)]
    assert answers[0] == {"sum": 6.0, "each": [1, 2, 3]}
    assert answers[1] == {"sum": 4.0, "each": [4]}
    assert answers[2] == {"sum": [11.0, 15.0], "each": [[5, 6], [7, 8]]}


def test_without_padding_only_equal_lengths_do():
    class Plain(Reader):
        padding = {}

    made = reader(Plain)
    answers = ask(made, [1, 2, 3], [4], [5, 6, 7])
    assert made.backends["main"].shapes == [(2, 3), (1, 1)]
    assert [answer["sum"] for answer in answers] == [6.0, 4.0, 18.0]


def test_what_is_left_out_has_its_default():
    made = reader()
    masked = {"tokens": [1, 2, 3], "mask": [True, False, True]}
    answers = ask(made, [1, 2, 3], masked, {"mask": [True]})
    assert [answers[0]["sum"], answers[1]["sum"]] == [6.0, 4.0]
    assert answers[2]["code"] == 400
    assert "'tokens' is missing" in answers[2]["message"]
    some = {"instances": [masked, {"tokens": [1, 2, 3]}]}
    assert "give it in all or in none" in ask(made, some)[0]["message"]


def test_nothing_is_made_of_a_size_that_is_not_allowed():
    made = reader()
    assert "'time' is 30000" in ask(made, [1] * 30000)[0]["message"]
    every = Signature(
        inputs={"x": TensorSpec("float32", ("batch", 1), default=0.0)},
        outputs={"y": TensorSpec("float32", ("batch", 1))},
    )
    made.signatures = {"main": every}
    assert "nothing was given" in ask(made, {})[0]["message"]


def test_a_size_that_follows_a_padded_one_keeps_requests_apart():
    half = Signature(
        inputs=TEXT.inputs,
        outputs={"half": TensorSpec("float32", ("batch", "half"))},
        dims={"time": (1, 8), "batch": (1, 4), "half": (1, 4)},
    )
    made = reader()
    made.signatures = {"main": half}

    class Halves(Sums):
        def run(self, inputs):
            self.shapes.append(inputs["tokens"].shape)
            return {"half": inputs["tokens"][:, ::2].astype(np.float32)}

    made.backends = {"main": Halves()}
    assert ask(made, [1, 2, 3], [4]) == [[1.0, 3.0], [4.0]]
    assert made.backends["main"].shapes == [(1, 3), (1, 1)]


def test_a_default_needs_known_sizes_and_its_dtype():
    alone = Signature(
        inputs={
            "x": TensorSpec("float32", ("batch", 1)),
            "state": TensorSpec("float32", ("other", 2), default=0.0),
        },
        outputs={"y": TensorSpec("float32", ("batch", 1))},
        dims={"other": (1, 4)},
    )
    with pytest.raises(SignatureError, match="nothing says what 'other' is"):
        alone.with_defaults({"x": np.zeros((1, 1), np.float32)})
    with pytest.raises(SignatureError, match="default 1 is no bool"):
        TensorSpec("bool", (1,), default=1)
    for dtype, default, reason in (
        ("int64", 1.5, "can hold"),
        ("uint8", 300, "can hold"),
        ("float32", float("nan"), "can hold"),
        ("float16", 1e10, "can hold"),
    ):
        with pytest.raises(SignatureError, match=reason):
            TensorSpec(dtype, (1,), default=default)
    with pytest.raises(SignatureError, match="not between"):
        TensorSpec("int64", (1,), low=1, default=0)
    assert TensorSpec.from_json(TensorSpec("bool", (1,), default=True).to_json()).default is True


class TwoGraphs(Handler):
    """Numbers enter at `up`, texts at `down`; a third kind is refused."""

    def decode(self, request):
        request.graph = "up" if isinstance(request.body, list) else "down"
        if request.body == "neither":
            raise BadRequest("neither")
        return {"x": np.array([[float(np.sum(request.body)) if request.graph == "up" else 1.0]], np.float32)}

    def encode(self, request, outputs):
        return float(outputs["y"][0, 0])


def test_each_request_enters_its_own_graph():
    made = TwoGraphs()
    one = Signature(
        inputs={"x": TensorSpec("float32", ("batch", 1))}, outputs={"y": TensorSpec("float32", ("batch", 1))}
    )
    made.signatures = {"up": one, "down": one}

    class Times:
        def __init__(self, factor):
            self.factor, self.rows = factor, []

        def run(self, inputs):
            self.rows.append(len(inputs["x"]))
            return {"y": inputs["x"] * self.factor}

    made.backends = {"up": Times(10), "down": Times(-1)}
    answers = ask(made, [1, 2], "text", [3], "neither", "text")
    assert [answers[i] for i in (0, 1, 2, 4)] == [30.0, -1.0, 30.0, -1.0]
    assert answers[3]["message"] == "neither"
    assert (made.backends["up"].rows, made.backends["down"].rows) == ([2], [2])
