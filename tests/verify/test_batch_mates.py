"""Parity of the handler: a request is answered among others as it is alone."""

from torchport.verify.verifying import verify

HANDLER = """
import torchport_runtime as runtime

class Reader(runtime.Handler):
    padding = {"tokens": 0}

    def encode(self, request, outputs):
        return outputs["y"][0].tolist()
"""


def verified(built, tmp_path, pooled, requests="[1, 2, 3], [4]"):
    """What parity says of a model of any length, two requests of other lengths, and a handler that pads."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "reader.py").write_text(HANDLER)
    return verify(
        *built(
            (
                "return nn.Linear(3, 2)",
                f"""class Pool(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(9, 2)

            def forward(self, tokens):
                return {pooled}

        return Pool()""",
            ),
            (
                '{"x": TensorSpec("float32", ("batch", 3))}',
                '{"tokens": TensorSpec("int64", ("batch", "time"), low=0, high=8)}',
            ),
            ("def build(self):", "dims = {'time': (1, 6)}\n\n    def build(self):"),
            (
                '{"x": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}',
                '{"tokens": np.random.default_rng(0).integers(1, 9, (4, 3))}',
            ),
            (
                '[Request(json=[1.0, 2.0, 3.0], tensors={"x": np.array([[1, 2, 3]], np.float32)})]',
                '[Request(json=t, tensors={"tokens": np.array([t])}) for t in (' + requests + ")]",
            ),
            ('"regressor"', '"reader"'),
        )
    )


def test_padding_that_reaches_the_answer_fails(built, tmp_path):
    result = verified(built, tmp_path, "self.table(tokens).mean(1)")
    assert any("request 1" in f and "does padding reach the answer" in f for f in result.failures)


def test_one_request_is_enough_to_see_it(built, tmp_path):
    result = verified(built, tmp_path, "self.table(tokens).mean(1)", requests="[1, 2, 3],")
    assert any("request 0" in f and "padding reaches the answer" in f for f in result.failures)


def test_padding_that_is_masked_passes(built, tmp_path):
    masked = "(self.table(tokens) * (tokens > 0).unsqueeze(-1)).sum(1)"
    assert not verified(built, tmp_path, masked).failures
