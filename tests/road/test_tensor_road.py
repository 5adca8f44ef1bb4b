"""The whole road of a model with everything at once, by the generic handler: integer input, optional mask,
recurrent state in and out, two dynamic dimensions, two outputs."""

import io

import numpy as np
import pytest

import torchport
from tests.conftest import run_stages
from torchport.errors import BadRequest
from torchport.recipe.loading import load_recipe
from torchport_runtime import write_arrays

pytestmark = pytest.mark.road

TAGGER = """
    import numpy as np
    import torch
    from torch import nn
    from torchport import Recipe, Request, TensorSpec

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 8)
            self.cell = nn.GRU(8, 16, batch_first=True)
            self.out = nn.Linear(16, 5)

        def forward(self, tokens, mask, state):
            states, last = self.cell(self.table(tokens) * mask.unsqueeze(-1), state.unsqueeze(0))
            return {"tags": self.out(states), "new_state": last.squeeze(0)}

    class Tagger(Recipe):
        name, version, handler = "tagger", "1.0", "tensor"
        inputs = {
            "tokens": TensorSpec("int64", ("batch", "time"), low=0, high=49),
            "mask": TensorSpec("bool", ("batch", "time"), default=True),
            "state": TensorSpec("float32", ("batch", 16), low=-1, high=1, default=0.0),
        }
        outputs = {
            "tags": TensorSpec("float32", ("batch", "time", 5)),
            "new_state": TensorSpec("float32", ("batch", 16)),
        }
        dims = {"batch": (1, 8), "time": (1, 20)}

        def build(self):
            return Net()

        def samples(self):
            draw = np.random.default_rng(0)
            yield {
                "tokens": draw.integers(0, 50, (8, 7)),
                "mask": draw.integers(0, 2, (8, 7)).astype(bool),
                "state": draw.uniform(-1, 1, (8, 16)).astype(np.float32),
            }

        def requests(self):
            tokens = np.array([[3, 1, 4, 1, 5]])
            given = {"tokens": tokens, "mask": np.ones((1, 5), bool), "state": np.zeros((1, 16), np.float32)}
            return [
                Request(json=[3, 1, 4, 1, 5], tensors=given),
                Request(json={"tokens": [3, 1, 4, 1, 5], "mask": [True] * 5}, tensors=given),
                Request(json={"instances": [{"tokens": [3, 1, 4, 1, 5]}]}, tensors=given),
            ]
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    import textwrap

    from torchport.store.folders import Store

    folder = tmp_path_factory.mktemp("tagger")
    path = folder / "tagger_recipe.py"
    path.write_text(textwrap.dedent(TAGGER))
    return run_stages(load_recipe(path), Store(folder / "store"))


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript"])
def test_a_sequence_in_two_halves_with_its_state_between(archive, backend):
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    with torchport.load(archive, backend=backend) as model:
        whole = model.predict(tokens)
        first = model.predict({"tokens": tokens[:3]})
        second = model.predict({"tokens": tokens[3:], "state": first["new_state"]})
        # Float32 rounding of one GRU against the same in two runs.
        np.testing.assert_allclose(first["tags"] + second["tags"], whole["tags"], atol=1e-6)
        np.testing.assert_allclose(second["new_state"], whole["new_state"], atol=1e-6)
        hidden = model.predict({"tokens": tokens, "mask": [True] * 3 + [False] * 5})
        np.testing.assert_allclose(hidden["tags"][:3], whole["tags"][:3], atol=1e-6)
        assert np.abs(np.subtract(hidden["tags"][3:], whole["tags"][3:])).max() > 1e-3


def test_files_and_lengths_and_what_does_not_fit(archive):
    with torchport.load(archive) as model:
        content = write_arrays({"tokens": np.array([[3, 1], [4, 1]])}, "npz")
        answer = np.load(io.BytesIO(model.predict(content)))
        assert answer["tags"].shape == (2, 2, 5)
        assert answer["new_state"].dtype == np.float32
        for body, reason in (
            ({"tokens": [50]}, "50 is above 49"),
            ({"tokens": [1] * 21}, "'time' is 21, expected at most 20"),
            ({"tokens": [1, 2], "mask": [True]}, "'time' is"),
            ({"tokens": [1, 2], "state": [0.0] * 15}, "expected float32"),
            ({"mask": [True]}, "'tokens' is missing"),
        ):
            with pytest.raises(BadRequest, match=reason):
                model.predict(body)
