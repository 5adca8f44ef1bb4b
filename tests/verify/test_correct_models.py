"""Recipes that are right, of several kinds, pass on every backend without touching a tolerance."""

import pytest
import torch

from torchport.verify.verifying import verify

CORRECT = {
    "several inputs of integers": """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 8)
            self.cell = nn.GRU(8, 16, batch_first=True)
            self.out = nn.Linear(16, 4)

        def forward(self, ids, mask):
            states, _ = self.cell(self.table(ids))
            weights = mask.to(states.dtype).unsqueeze(-1)
            return self.out((states * weights).sum(1) / weights.sum(1).clamp(min=1))

    class Tiny(Recipe):
        name, version, handler = "tiny", "1.0", "regressor"
        inputs = {
            "ids": TensorSpec("int64", ("batch", "time"), low=0, high=49),
            "mask": TensorSpec("int64", ("batch", "time"), low=0, high=1),
        }
        outputs = {"logits": TensorSpec("float32", ("batch", 4))}
        dims = {"batch": (1, 8), "time": (1, 12)}

        def build(self):
            return Net()

        def samples(self):
            ids = np.random.default_rng(0).integers(0, 50, (4, 7))
            yield {"ids": ids, "mask": (ids > 5).astype(np.int64)}

        def requests(self):
            ids = np.array([[1, 2], [3, 4]])
            mask = np.array([[1, 1], [1, 0]])
            sent = {"ids": ids.tolist(), "mask": mask.tolist()}
            return [Request(json=sent, tensors={"ids": ids, "mask": mask})]
    """,
    "two dynamic sizes and two outputs": """
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, image):
            features = torch.relu(self.norm(self.conv(image)))
            return {"pooled": features.mean((2, 3)), "map": features}

    class Tiny(Recipe):
        name, version, handler = "tiny", "1.0", "regressor"
        inputs = {"image": TensorSpec("float32", ("batch", 3, "height", "width"))}
        outputs = {
            "map": TensorSpec("float32", ("batch", 4, "height", "width")),
            "pooled": TensorSpec("float32", ("batch", 4)),
        }
        dims = {"batch": (1, 4), "height": (4, 33), "width": (4, 31)}

        def build(self):
            return Net()

        def samples(self):
            yield {"image": np.random.default_rng(0).standard_normal((2, 3, 9, 12)).astype(np.float32)}

        def requests(self):
            image = np.zeros((1, 3, 4, 4), np.float32)
            return [Request(json=image.tolist(), tensors={"image": image})]
    """,
    "attention": """
    class Tiny(Recipe):
        name, version, handler = "tiny", "1.0", "regressor"
        inputs = {"x": TensorSpec("float32", ("batch", "time", 16))}
        outputs = {"y": TensorSpec("float32", ("batch", "time", 16))}
        dims = {"batch": (1, 4), "time": (1, 20)}

        def build(self):
            return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def samples(self):
            yield {"x": np.random.default_rng(0).standard_normal((3, 5, 16)).astype(np.float32)}

        def requests(self):
            x = np.zeros((1, 2, 16), np.float32)
            return [Request(json=x.tolist(), tensors={"x": x})]
    """,
    "no batch dimension": """
    class Tiny(Recipe):
        name, version, handler = "tiny", "1.0", "regressor"
        inputs = {"x": TensorSpec("float32", (5,))}
        outputs = {"y": TensorSpec("float32", (2,))}

        def build(self):
            return nn.Sequential(nn.Linear(5, 2), nn.Tanh())

        def samples(self):
            yield {"x": np.ones(5, np.float32)}

        def requests(self):
            return [Request(json=[1.0] * 5, tensors={"x": np.ones(5, np.float32)})]
    """,
}


IMPORTS = """
    import numpy as np
    import torch
    from torch import nn
    from torchport import Recipe, Request, TensorSpec
"""


@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
@pytest.mark.parametrize("kind", CORRECT)
def test_correct_models_pass_without_touching_a_tolerance(built, kind):
    torch.manual_seed(0)
    recipe, folder = built(source=IMPORTS + CORRECT[kind])
    result = verify(recipe, folder)
    assert result.failures == []
    assert result.certificate["reference"] == {"main": "float64"}
