"""The detector's handler: boxes in the picture's own pixels, whatever the picture; and pictures of them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.runtime.test_handler import Context
from torchport.recipe.handler import handler_class
from torchport.recipe.shipped import packaged_folder
from torchport_runtime import ImageTransform, InferenceRequest, Signature, TensorSpec

SIZE, STRIDES = (64, 96), (8, 16)
POINTS = 8 * 12 + 4 * 6


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


class Bright:
    """A graph that finds one box of a point's own cell wherever the picture is bright."""

    device = provider = "test"

    def run(self, inputs):
        rows = len(inputs["image"])
        bright = inputs["image"][:, 0, ::8, ::8].reshape(rows, -1)
        logits = np.full((rows, POINTS, 2), -50, np.float32)
        logits[:, :96, 1] = np.where(bright > 0.5, 20 * bright, -50)
        return {
            "logits": logits,
            "distances": np.full((rows, POINTS, 4), 0.5, np.float32),
            "centerness": np.full((rows, POINTS, 1), 50, np.float32),
        }


@pytest.fixture
def detector():
    made = handler_class(packaged_folder("handlers") / "object_detector.py")()
    made.signatures = {
        "main": Signature(
            inputs={"image": TensorSpec("float32", ("batch", 1, *SIZE))},
            outputs={
                "logits": TensorSpec("float32", ("batch", POINTS, 2)),
                "distances": TensorSpec("float32", ("batch", POINTS, 4)),
                "centerness": TensorSpec("float32", ("batch", POINTS, 1)),
            },
        )
    }
    made.options = {
        "image": ImageTransform(size=SIZE, mode="L", mean=(0.0,), std=(1.0,)).to_json(),
        "labels": ["dark", "bright"],
        "boxes": {"strides": list(STRIDES)},
    }
    made.backends = {"main": Bright()}
    made.setup()
    return made


def ask(made, picture, **fields):
    body = picture if isinstance(picture, bytes) else encoded(picture)
    (answer,) = made.answer([InferenceRequest({"body": body, **fields})])
    return answer


def spotted(size=(192, 128), at=(64, 48), radius=8):
    """Black, with one bright spot, which one point alone sees."""
    picture = Image.new("L", size)
    picture.paste(255, (at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius))
    return picture


def test_boxes_are_in_the_pictures_own_pixels(detector):
    answer = ask(detector, spotted())
    assert answer.value == {
        "boxes": [{"box": [56.0, 40.0, 72.0, 56.0], "label": "bright", "score": 1.0}],
        "width": 192,
        "height": 128,
    }


def test_boxes_of_a_rotated_picture_are_those_of_the_upright_one(detector):
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotate by 90 degrees to display.
    lying = spotted().transpose(Image.Transpose.ROTATE_90)
    answer = ask(detector, encoded(lying, "JPEG", quality=95, exif=exif))
    assert (answer.value["width"], answer.value["height"]) == (192, 128)
    np.testing.assert_allclose(answer.value["boxes"][0]["box"], [56, 40, 72, 56], atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (96, 64), (3, 2)])
@pytest.mark.parametrize("draw", ["0", "1"])
def test_pictures_of_any_size_get_answers(detector, size, draw):
    answer = ask(detector, Image.new("L", size, 255), draw=draw, min_score_percent="0")
    assert answer.status == 200
    if draw == "1":
        assert Image.open(io.BytesIO(answer.value)).size == size
        return
    assert answer.value["boxes"]
    for found in answer.value["boxes"]:
        x1, y1, x2, y2 = found["box"]
        assert 0 <= x1 <= x2 <= size[0]
        assert 0 <= y1 <= y2 <= size[1]


def test_a_black_picture_holds_nothing(detector):
    answer = ask(detector, Image.new("L", (300, 200)))
    assert answer.value == {"boxes": [], "width": 300, "height": 200}
    drawn = Image.open(io.BytesIO(ask(detector, Image.new("L", (300, 200)), draw="1").value))
    assert drawn.getextrema() == ((0, 0), (0, 0), (0, 0))


def test_requests_say_how_many_and_how_sure(detector):
    picture = Image.new("L", (96, 64), 140)  # A logit of 11: surely bright.
    picture.paste(255, (0, 0, 96, 32))
    everything = ask(detector, picture).value["boxes"]
    assert len(everything) == 96
    assert [b["score"] for b in everything] == sorted((b["score"] for b in everything), reverse=True)
    assert ask(detector, picture, max_boxes="2").value["boxes"] == everything[:2]
    assert len(ask(detector, picture, min_score_percent="100").value["boxes"]) < 96


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_boxes", "0"),
        ("max_boxes", "401"),
        ("max_boxes", "many"),
        ("min_score_percent", "0.5"),
        ("min_score_percent", "101"),
        ("draw", "yes"),
    ],
)
def test_a_wrong_field_fails_alone_and_before_the_model_runs(detector, field, value):
    rows = [{"body": encoded(spotted())}, {"body": encoded(spotted()), field: value}]
    context = Context()
    answers = [json.loads(a) for a in detector.handle(rows, context)]
    assert len(answers[0]["boxes"]) == 1
    assert context.statuses == {1: (400, "Bad Request")}
    assert field in answers[1]["message"]


def test_pictures_of_different_sizes_share_a_batch(detector):
    pictures = [spotted(), Image.new("L", (7, 50)), spotted((96, 64), (48, 32), 4)]
    context = Context()
    answers = [json.loads(a) for a in detector.handle([{"body": encoded(p)} for p in pictures], context)]
    assert [(a["width"], a["height"]) for a in answers] == [p.size for p in pictures]
    assert [len(a["boxes"]) for a in answers][:2] == [1, 0]
    assert answers[2]["boxes"][0]["box"] == [44, 28, 52, 36]


def test_boxes_are_drawn_on_the_picture(detector):
    answer = ask(detector, spotted(), draw="1")
    assert answer.content_type == "image/png"
    pixels = np.asarray(Image.open(io.BytesIO(answer.value)))
    assert pixels.shape == (128, 192, 3)
    outline = pixels[55, 56:72]
    assert (outline == outline[0]).all()
    assert len(set(outline[0].tolist())) > 1  # A colour, where the picture is grey.
    assert (pixels[100:] == 0).all()


def test_a_large_picture_is_drawn_smaller_but_answered_in_its_own_pixels(detector):
    large = spotted((2880, 1920), (960, 720), 60)
    drawn = ask(detector, large, draw="1").value
    assert 1_900_000 < np.prod(Image.open(io.BytesIO(drawn)).size) <= 2_000_000
    assert ask(detector, large).value["boxes"][0]["box"] == [840, 600, 1080, 840]


def test_an_answer_that_is_not_finite_is_said_so(detector):
    class Broken(Bright):
        def run(self, inputs):
            outputs = super().run(inputs)
            outputs["distances"][:, 3, 0] = np.nan
            return outputs

    detector.backends = {"main": Broken()}
    answer = ask(detector, spotted())
    assert answer.status == 422
    assert "NaN or Inf" in answer.value["message"]


def test_what_is_no_picture_is_refused(detector):
    assert ask(detector, b"a text").status == 400


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"labels": ["one"]}, "1 labels"),
        ({"boxes": {"strides": [8]}}, "96 points"),
        ({"boxes": {"strides": [8, 16], "unit": "metre"}}, "unit"),
    ],
)
def test_options_that_do_not_fit_the_graph_are_refused(detector, options, reason):
    detector.options = {**detector.options, **options}
    with pytest.raises(ValueError, match=reason):
        detector.setup()


def test_labels_from_an_asset_and_a_graph_without_centerness(detector, tmp_path):
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    main = detector.signatures["main"]
    two = {name: main.outputs[name] for name in ("logits", "distances")}
    detector.signatures = {"main": Signature(inputs=main.inputs, outputs=two)}
    detector.assets = tmp_path
    detector.options = {k: v for k, v in detector.options.items() if k != "labels"}
    detector.setup()
    assert ask(detector, spotted()).value["boxes"][0]["label"] == "yes"
