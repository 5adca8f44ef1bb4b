"""Explanations: integrated gradients of a small classifier, on the backend that has gradients."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runtime.test_handler import Context
from torchport.model.trained import trained_model
from torchport.recipe.handler import handler_class
from torchport.recipe.loading import find_handler
from torchport.recipe.variants import backend_options

CLASSIFIER = """
    import numpy as np
    import torch
    from torch import nn
    from torchport import ImageTransform, Recipe, Request, TensorSpec

    transform = ImageTransform(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)

    class Tiny(Recipe):
        name, version, handler = "tiny", "1.0", "image_classifier"
        inputs = {"image": TensorSpec("float32", ("batch", 3, 8, 8))}
        outputs = {"logits": TensorSpec("float32", ("batch", 3))}
        handler_options = {"image": transform.to_json(), "labels": ["cat", "dog", "owl"]}

        def build(self):
            layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
            return nn.Sequential(*layers)

        def samples(self):
            yield {"image": np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)}

        def requests(self):
            picture = np.zeros((1, 3, 8, 8), np.float32)
            return [Request(body=b"not asked here", tensors={"image": picture})]
"""


def picture():
    pixels = np.random.default_rng(5).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def loaded(built):
    recipe, folder = built(source=CLASSIFIER)

    def load(backend):
        made = handler_class(find_handler(recipe))()
        made.load(folder.path, backend_options(recipe, backend, "cpu"), dict(recipe.handler_options))
        return made

    return recipe, folder, load


def ask(made, explain=True, **fields):
    import json

    context = Context({"explain": "True"} if explain else {})
    (answer,) = made.handle([{"body": picture(), **fields}], context)
    if context.types[0] == "application/json":
        answer = json.loads(answer)
    return answer, context


def test_attributions_add_up_to_the_change_of_the_logit(loaded):
    recipe, folder, load = loaded
    made = load("torchscript")
    answer, context = ask(made)
    assert context.statuses == {}
    label, probability = next(iter(ask(made, explain=False)[0].items()))
    assert (answer["label"], answer["probability"]) == (label, pytest.approx(probability))
    attributions = np.array(answer["attributions"])
    assert attributions.shape == (8, 8)
    image = torch.from_numpy(made.transform(Image.open(io.BytesIO(picture())).convert("RGB"))[None])
    model = trained_model(recipe, folder)
    target = made.labels.index(label)
    change = (model(image) - model(torch.zeros_like(image)))[0, target].item()
    # The sum's error is that of 50 steps of a Riemann sum, which Captum says itself.
    assert attributions.sum() == pytest.approx(change, abs=answer["delta"] + 1e-4)
    assert answer["delta"] < 0.05 * max(1, abs(change))


def test_another_label_and_a_picture(loaded):
    made = loaded[2]("torchscript")
    answer, _ = ask(made, label=b"owl")
    assert answer["label"] == "owl"
    drawn, context = ask(made, draw="1")
    assert context.types[0] == "image/png"
    assert Image.open(io.BytesIO(drawn)).size == (256, 256)
    wrong, context = ask(made, label="cow")
    assert context.statuses[0][0] == 400
    assert "one of cat, dog, owl" in wrong["message"]


def test_a_backend_without_gradients_says_which_has_them(loaded):
    for backend in ("onnxruntime", "pt2"):
        answer, context = ask(loaded[2](backend))
        assert context.statuses[0][0] == 400
        assert "TORCHPORT_BACKEND=torchscript" in answer["message"]


def test_a_handler_without_explanations_says_so(built):
    from torchport_runtime import InferenceRequest

    recipe, folder = built()
    made = handler_class(find_handler(recipe))()
    made.load(folder.path, backend_options(recipe, "torchscript", "cpu"), {})
    (answer,) = made.answer([InferenceRequest({"body": [1.0, 2.0, 3.0]}, {"explain": "True"})])
    assert answer.status == 400
    assert "ask /predictions" in answer.value["message"]
