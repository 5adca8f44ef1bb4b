"""A handler must answer with every export as with the trained model."""

import pytest

from tests.verify.test_parity import change_onnx, scale_weight
from torchport.verify.verifying import verify

IMPORT = "import torchport_runtime as runtime\n\n\nclass Mine(runtime.Handler):\n"
HELD_OUT = (
    "    def requests",
    """    def heldout(self):
        for x in np.random.default_rng(3).uniform(1, 2, (200, 3)).astype(np.float32):
            yield Example(request=Request(json=x.tolist()), expected=None)

    def requests""",
)
EXAMPLE = ("import Recipe, Request", "import Example, Recipe, Request")
POSITIVE = (
    "return nn.Linear(3, 2)",
    """net = nn.Linear(3, 2, bias=False)
        nn.init.constant_(net.weight, 0.1)
        return net""",
)
BOXES = """
    def encode(self, request, outputs):
        side = float(outputs["y"][0, 0])
        return {"boxes": [{"box": [0.0, 0.0, 100 * side, 10.0], "label": "a", "score": side}]}
"""


@pytest.fixture
def answers(built, tmp_path):
    """What the certificate says of a handler with these lines, and its failures."""

    def of(lines, *changes, factor=None):
        recipe, folder = built(*changes)
        (tmp_path / "recipes" / "regressor.py").write_text(IMPORT + lines)
        if factor is not None:
            change_onnx(folder, scale_weight("weight", factor))
        certificate = verify(recipe, folder).certificate
        return certificate["answers"], certificate["failures"], certificate

    return of


def test_boxes_of_every_backend_are_those_of_the_trained_model(answers):
    rows, failures, certificate = answers(BOXES, POSITIVE, EXAMPLE, HELD_OUT)
    assert failures == []
    assert certificate["answers_against"] == "float64"
    assert [row["backend"] for row in rows] == ["onnxruntime", "torchscript"]
    for row in rows:  # A request, and 64 of the 200 held-out inputs.
        assert (row["kind"], row["compared"], row["agreed"], row["ties"]) == ("boxes", 65, 65, 0)
        assert row["rate"] == 1.0
        assert 0 < row["scores_apart"] < 1e-5


def test_boxes_that_differ_are_named_with_their_input(answers):
    rows, failures, _ = answers(BOXES, POSITIVE, EXAMPLE, HELD_OUT, factor=1.2)
    onnx, script = rows
    assert (onnx["compared"], onnx["agreed"], script["agreed"]) == (65, 0, 65)
    assert len(onnx["first_differing"]) == 10
    assert onnx["first_differing"][0]["input"] == "request 0"
    assert any(
        "onnxruntime on cpu, answer to held-out 3: boxes: 0 of 1 boxes are among" in failure
        for failure in failures
    )


def test_what_a_handler_makes_of_one_backend_only_fails_though_the_graphs_agree(answers):
    rows, failures, _ = answers(
        """
    def infer(self, graph, inputs):
        outputs = self.backends[graph].run(inputs)
        return outputs if "torch" in self.backends[graph].provider else {"y": -outputs["y"]}

    def encode(self, request, outputs):
        return {"label": str(outputs["y"][0, 0] > 0)}
""",
        POSITIVE,
    )
    assert [(row["kind"], row["agreed"]) for row in rows] == [("label", 0), ("label", 1)]
    (failure,) = failures
    assert failure == (
        "onnxruntime on cpu, answer to request 0: label: 'False', the trained model says 'True'"
    )


def test_what_rounding_turns_over_is_a_near_tie(answers):
    # 0.1 in float32 is 0.10000000149. Six of them, in float64, are 0.60000000894; the nearest float32 is
    # above that, 0.60000002384: between them eager float32 decides otherwise than float64.
    rows, failures, _ = answers(
        """
    def encode(self, request, outputs):
        return {"label": str(float(outputs["y"][0, 0]) > 0.600000015)}
""",
        POSITIVE,
        EXAMPLE,
        HELD_OUT,
    )
    assert failures == []
    assert [(row["compared"], row["ties"], row["rate"]) for row in rows] == [(64, 1, 1.0)] * 2


def test_a_handler_that_shows_its_precision_is_held_against_eager(answers):
    rows, failures, certificate = answers(
        """
    def encode(self, request, outputs):
        return {"text": f"{outputs['y'].dtype.itemsize} bytes, {outputs['y'][0, 0]:.2f}"}
"""
    )
    assert failures == []
    assert certificate["answers_against"] == "float32: the handler answers 1 of 1 otherwise in float64"
    assert [(row["kind"], row["compared"], row["agreed"]) for row in rows] == [("sequence", 1, 1)] * 2


def test_a_handler_that_cannot_take_float64_is_held_against_eager(answers):
    rows, failures, certificate = answers(
        """
    def encode(self, request, outputs):
        if outputs["y"].dtype != "float32":
            raise TypeError("float32 only")
        return outputs["y"][0].tolist()
"""
    )
    assert failures == []
    assert certificate["answers_against"] == ("float32: the handler does not answer request 0 in float64")
    assert [row["agreed"] for row in rows] == [1, 1]


def test_a_word_that_decides_nothing_is_refused(built, tmp_path):
    from torchport.errors import RecipeError

    recipe, folder = built()
    (tmp_path / "recipes" / "regressor.py").write_text(f'{IMPORT}    decides = "lable"\n')
    with pytest.raises(RecipeError, match="decides = 'lable': one of boxes, picture"):
        verify(recipe, folder)


def test_plain_rows_are_answered_alike_alone_and_together(built):
    """Several plain rows are written at once, as text: the same answer as a list of numbers."""
    recipe, folder = built(
        (
            'return [Request(json=[1.0, 2.0, 3.0], tensors={"x": np.array([[1, 2, 3]], np.float32)})]',
            'return 2 * [Request(json=[1.0, 2.0, 3.0], tensors={"x": np.array([[1, 2, 3]], np.float32)})]',
        )
    )
    assert verify(recipe, folder).failures == []
