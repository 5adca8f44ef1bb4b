"""Handlers that make other tensors of a request than the model was trained on."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.verify.defects.conftest import Model
from torchport.recipe.contract import Request
from torchport.verify.verifying import verify

MEAN, STD = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.25, 0.3])

PICTURE = Model(
    layers="self.inner = nn.Conv2d(3, 2, 3)",
    right="y = self.inner(x).mean((2, 3))",
    inputs={"x": '"float32", ("batch", 3, 8, 8)'},
    outputs={"y": '"float32", ("batch", 2)'},
)

HANDLER = """
import io
import numpy as np
import torchport_runtime as runtime
from PIL import Image

MEAN, STD = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.25, 0.3])


class Reader(runtime.Handler):
    def decode(self, request):
        picture = Image.open(io.BytesIO(request.content)).convert("RGB").resize((8, 8), Image.BILINEAR)
        pixels = np.asarray(picture, np.float32)
        pixels = pixels / 255
        pixels = (pixels - MEAN) / STD
        return {"x": np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]}

    def encode(self, request, outputs):
        return outputs["y"][0].tolist()
"""


def pixels_of_a_request() -> tuple[bytes, np.ndarray]:
    """A picture as a client sends it, and the tensor that training made of it."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    resized = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR), np.float32)
    return buffer.getvalue(), np.ascontiguousarray(((resized / 255 - MEAN) / STD).transpose(2, 0, 1))[None]


@pytest.fixture
def answered(shipped_as, tmp_path, monkeypatch):
    """What parity says of the handler above with some of its text replaced."""

    def run(old: str, new: str) -> list[str]:
        assert old in HANDLER
        recipe, folder = shipped_as(PICTURE)
        content, tensor = pixels_of_a_request()
        request = Request(body=content, content_type="image/png", tensors={"x": tensor})
        monkeypatch.setattr(type(recipe), "requests", lambda self: [request])
        monkeypatch.setattr(type(recipe), "handler", "reader")
        (tmp_path / "recipes" / "reader.py").write_text(HANDLER.replace(old, new))
        return verify(recipe, folder).failures

    return run


def test_the_right_handler_passes(answered):
    assert answered("pixels / 255", "pixels / 255") == []


def test_a_view_that_is_not_contiguous_is_no_fault(answered):
    assert answered("np.ascontiguousarray(pixels.transpose(2, 0, 1))", "pixels.transpose(2, 0, 1)") == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("pixels / 255", "pixels / 1", id="not divided by 255"),
        pytest.param("(pixels - MEAN) / STD", "(pixels - STD) / MEAN", id="mean and deviation exchanged"),
        pytest.param("pixels.transpose(2, 0, 1)", "pixels[..., ::-1].transpose(2, 0, 1)", id="BGR"),
        pytest.param("pixels.transpose(2, 0, 1)", "pixels.transpose(2, 1, 0)", id="height for width"),
        pytest.param("BILINEAR", "BICUBIC", id="another resize"),
        pytest.param("pixels.transpose(2, 0, 1)", "pixels.reshape(3, 8, 8)", id="reshaped for transposed"),
    ],
)
def test_other_tensors_are_named(answered, old, new):
    (failure,) = answered(old, new)
    assert "handler reader, request 0: 'x' differs from the recipe's tensor by up to" in failure
