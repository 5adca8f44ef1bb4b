"""Arrays as pictures, and the two handlers that answer with them: layouts, seeds, hostile requests."""

import base64
import io
import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torchport.recipe.handler import handler_class
from torchport.recipe.shipped import packaged_folder
from torchport_runtime import BadRequest, ImageTransform, InferenceRequest, Signature, TensorSpec, pictures

LATENT = TensorSpec("float32", ("batch", 3))
IMAGE = TensorSpec("float32", ("batch", 1, 4, 4), low=0, high=1)


def opened(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def file(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Graph:
    """A function as a backend."""

    device = provider = "test"

    def __init__(self, function):
        self.function, self.batches = function, []

    def run(self, inputs):
        self.batches.append(len(next(iter(inputs.values()))))
        return self.function(**inputs)


def shade(rows):
    """One flat image a row, its shade a logistic function of the row's sum."""
    flat = 1 / (1 + np.exp(-rows.sum(axis=1)))
    return np.broadcast_to(flat[:, None, None, None], (len(rows), 1, 4, 4)).astype(np.float32)


@pytest.fixture
def generator():
    made = handler_class(packaged_folder("handlers") / "image_generator.py")()
    digit = TensorSpec("int64", ("batch",), low=0, high=9)
    made.signatures = {"main": Signature(inputs={"noise": LATENT, "digit": digit}, outputs={"image": IMAGE})}
    made.options = {"enlarge": 2}
    made.backends = {"main": Graph(lambda noise, digit: {"image": shade(noise + 10 * digit[:, None])})}
    made.setup()
    return made


@pytest.fixture
def autoencoder():
    made = handler_class(packaged_folder("handlers") / "autoencoder.py")()
    made.signatures = {
        "encoder": Signature(inputs={"image": IMAGE}, outputs={"mean": LATENT, "log_variance": LATENT}),
        "decoder": Signature(inputs={"latent": LATENT}, outputs={"image": IMAGE}),
    }
    transform = ImageTransform(size=(4, 4), mode="L", mean=(0.0,), std=(1.0,))
    made.options = {"image": transform.to_json(), "enlarge": 2}

    def encode(image):
        mean = image.mean(axis=(1, 2, 3))[:, None].repeat(3, axis=1)
        return {"mean": mean, "log_variance": np.full_like(mean, np.nan)}  # Which nobody may use.

    made.backends = {
        "encoder": Graph(encode),
        "decoder": Graph(lambda latent: {"image": shade(latent)}),
    }
    made.setup()
    return made


def ask(handler, *rows):
    return handler.answer([InferenceRequest(row) for row in rows])


def test_floats_become_the_nearest_grey_and_are_clipped():
    images = np.array([-1, 0, 0.4 / 255, 0.6 / 255, 0.5, 1, 2], np.float32).reshape(1, 1, 1, 7)
    assert pictures.to_pixels(images).flatten().tolist() == [0, 0, 0, 1, 128, 255, 255]
    assert pictures.to_pixels(np.array([[[[-1.0, 0.0, 1.0]]]]), -1, 1).flatten().tolist() == [0, 128, 255]


@given(st.floats(0, 1, width=32), st.floats(-1e-6, 1e-6))
def test_a_rounding_of_float32_moves_a_pixel_by_one_grey_at_most(value, error):
    one, other = (pictures.to_pixels(np.full((1, 1, 1, 1), v)).item() for v in (value, value + error))
    assert abs(one - other) <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_colour_is_said_so(value):
    with pytest.raises(BadRequest, match="NaN or Inf") as caught:
        pictures.to_pixels(np.full((1, 1, 2, 2), value))
    assert caught.value.http_status == 422


@given(st.integers(1, 20), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_a_sheet_is_cut_into_what_it_was_made_of(count, channels, height, width, enlarge):
    shape = (count, channels, height, width)
    pixels = np.random.RandomState(count).randint(256, size=shape).astype(np.uint8)
    drawn = pictures.sheet(pixels, enlarge)
    np.testing.assert_array_equal(pictures.cut_sheet(drawn, count, (height, width), enlarge), pixels)
    np.testing.assert_array_equal(opened(pictures.png(drawn)), drawn)


def test_the_layout_of_a_sheet():
    pixels = np.array([[[[10]]], [[[20]]], [[[30]]]], np.uint8)
    gap = pictures.GAP_LEVEL
    assert pictures.sheet(pixels).tolist() == [[10, gap, 20], [gap, gap, gap], [30, gap, gap]]
    assert pictures.sheet(pixels[:1], 2).tolist() == [[10, 10], [10, 10]]
    with pytest.raises(ValueError, match="expected"):
        pictures.cut_sheet(pictures.sheet(pixels), 5, (1, 1))


def test_a_seed_means_these_numbers_for_ever():
    np.testing.assert_allclose(pictures.noise(0, 1, (3,)), [[1.7640524, 0.4001572, 0.978738]], rtol=1e-6)
    assert pictures.choices(0, 8, 0, 9).tolist() == [1, 4, 0, 6, 8, 3, 5, 4]
    assert pictures.noise(0, 2, (4, 1, 1)).dtype == np.float32


@given(st.integers(0, pictures.MAX_SEED), st.integers(1, 64), st.integers(1, 64))
def test_a_row_of_a_seed_does_not_depend_on_how_many(seed, one, other):
    rows = min(one, other)
    for draw in (lambda n: pictures.noise(seed, n, (3, 2)), lambda n: pictures.choices(seed, n, 2, 5)):
        np.testing.assert_array_equal(draw(one)[:rows], draw(other)[:rows])
    assert set(pictures.choices(seed, one, 2, 5)) <= {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"body": {}}, {"seed": 0, "n": 16}),
        ({"body": b'{"seed": 7, "n": 3}'}, {"seed": 7, "n": 3}),
        ({"data": b' {"digit": 0}'}, {"seed": 0, "n": 16, "digit": 0}),
        ({"seed": b"7", "digit": "9"}, {"seed": 7, "n": 16, "digit": 9}),
        ({"body": {"seed": 4294967295}, "n": b"64"}, {"seed": 4294967295, "n": 64}),
    ],
)
def test_what_a_request_asks_for(fields, expected):
    assert pictures.sampling(InferenceRequest(fields), also={"digit": (0, 9)}) == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "empty"),
        ({"body": []}, "type list"),
        ({"body": b"{"}, "not JSON"),
        ({"body": {"sed": 1}}, "did you mean 'seed'"),
        ({"body": {"instances": []}}, "known: digit, n, seed"),
        ({"body": {"seed": 1.0}}, "seed=1.0: a whole number"),
        ({"body": {"seed": True}}, "whole number"),
        ({"body": {"seed": "1"}}, "whole number"),
        ({"body": {"seed": 2**32}}, "from 0 to 4294967295"),
        ({"body": {"seed": 10**5000}}, "more than 38 digits"),
        ({"body": {"n": 65}}, "from 1 to 64"),
        ({"body": {}, "sed": b"1"}, "did you mean 'seed'"),
        ({"body": {"n": 1}, "n": b"1"}, "give it once"),
    ],
)
def test_a_wrong_wish_is_refused_with_a_reason(fields, reason):
    with pytest.raises(BadRequest, match=reason) as caught:
        pictures.sampling(InferenceRequest(fields), also={"digit": (0, 9)})
    assert len(str(caught.value)) < 200


def test_samples_of_several_requests_share_a_run(generator):
    bodies = ({"seed": 1, "n": 4}, {"seed": 2, "n": 1}, {"seed": 1, "n": 2})
    answers = ask(generator, *({"body": body} for body in bodies))
    assert [answer.content_type for answer in answers] == ["image/png"] * 3
    assert generator.backends["main"].batches == [7]
    four, one, two = (
        pictures.cut_sheet(opened(answer.value), count, (4, 4), 2)
        for answer, count in zip(answers, (4, 1, 2), strict=True)
    )
    np.testing.assert_array_equal(four[:2], two)
    assert one.shape == (1, 1, 4, 4)


def test_the_digit_is_drawn_from_the_seed_or_given(generator):
    def digits(body):
        return generator.decode(InferenceRequest({"body": body}))["digit"].tolist()

    assert digits({"seed": 5, "n": 4}) == pictures.choices(5, 4, 0, 9).tolist()
    assert digits({"seed": 5, "n": 4, "digit": 3}) == [3, 3, 3, 3]


def test_a_generator_of_large_pictures_makes_fewer(generator):
    image = TensorSpec("float32", ("batch", 3, 512, 512))
    generator.signatures = {"main": Signature(inputs={"noise": LATENT}, outputs={"image": image})}
    generator.options = {}
    generator.setup()
    assert generator.decode(InferenceRequest({"body": {}}))["noise"].shape == (7, 3)
    (answer,) = ask(generator, {"body": {"n": 8}})
    assert (answer.status, "from 1 to 7" in answer.value["message"]) == (400, True)


def test_a_picture_comes_back_as_its_reconstruction(autoencoder):
    white = file(Image.new("L", (9, 7), 255))
    alone, both = ask(autoencoder, {"body": white}, {"data": white, "side_by_side": b"1"})
    expected = round(255 / (1 + np.exp(-3)))
    assert opened(alone.value).tolist() == np.full((8, 8), expected).tolist()
    seen, drawn = pictures.cut_sheet(opened(both.value), 2, (4, 4), 2)
    assert (seen == 255).all()
    assert (drawn == expected).all()


def test_json_and_pictures_in_one_batch_enter_at_their_graphs(autoencoder):
    rows = [
        {"body": b'{"seed": 7, "n": 4}'},
        {"body": file(Image.new("L", (4, 4), 0))},
        {"body": {"seed": 7, "n": 4}},
        {"body": b"junk"},
        {"seed": b"7", "n": b"4"},
    ]
    answers = ask(autoencoder, *rows)
    assert [answer.status for answer in answers] == [200, 200, 200, 400, 200]
    assert answers[0].value == answers[2].value == answers[4].value
    assert autoencoder.backends["encoder"].batches == [1]
    assert sorted(autoencoder.backends["decoder"].batches) == [1, 12]


def test_a_file_in_base64_is_a_picture(autoencoder):
    text = base64.b64encode(file(Image.new("L", (4, 4), 9))).decode()
    rows = [{"body": {"b64": text}}, {"body": json.dumps({"b64": text}).encode()}, {"body": text}]
    answers = ask(autoencoder, *rows)
    assert [answer.status for answer in answers] == [200] * 3
    assert len({answer.value for answer in answers}) == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "send a picture"),
        ({"side_by_side": b"1"}, "send a picture"),
        ({"body": [1.0]}, "type list"),
        ({"body": b"{oops"}, "not JSON"),
        ({"body": {"seed": 1}, "side_by_side": b"1"}, "unknown field 'side_by_side'"),
        ({"body": file(Image.new("L", (4, 4))), "side_by_sid": b"1"}, "did you mean 'side_by_side'"),
        ({"body": file(Image.new("L", (4, 4))), "side_by_side": b"yes"}, "whole number"),
    ],
)
def test_what_an_autoencoder_cannot_read(autoencoder, fields, reason):
    (answer,) = ask(autoencoder, fields)
    assert answer.status == 400
    assert reason in answer.value["message"]


@cache
def hostile_pictures():
    """Files, and the status of the answer."""
    frames = [Image.new("L", (8, 8), shade) for shade in (255, 0)]
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = file(Image.linear_gradient("L"))
    return {
        "bomb": (file(Image.new("1", (10_000, 9_000))), 413),
        "animation": (file(frames[0], "GIF", save_all=True, append_images=frames[1:]), 200),
        "turned": (file(Image.new("RGB", (40, 20)), "JPEG", exif=exif), 200),
        "transparent palette": (file(Image.new("P", (8, 8), 3), transparency=3), 200),
        "alpha": (file(Image.new("RGBA", (8, 8), (1, 2, 3, 4))), 200),
        "16 bits": (file(Image.fromarray(np.full((8, 8), 65535, np.uint16))), 200),
        "one pixel": (file(Image.new("L", (1, 1))), 200),
        "truncated": (whole[: len(whole) // 2], 400),
        "TIFF": (file(Image.new("L", (8, 8)), "TIFF"), 400),
        "text": (b"a seven", 400),
    }


@pytest.mark.parametrize("name", list(hostile_pictures()))
def test_every_picture_is_answered_or_refused(autoencoder, name):
    content, status = hostile_pictures()[name]
    (answer,) = ask(autoencoder, {"body": content, "side_by_side": b"1"})
    assert answer.status == status
    if status == 200:
        assert opened(answer.value).shape == (8, 18)


def test_a_generator_refuses_pictures(generator):
    answers = ask(generator, *({"body": content} for content, _ in hostile_pictures().values()))
    assert {answer.status for answer in answers} == {400}


def test_options_that_fit_no_graph_are_said_when_loading(generator, autoencoder):
    generator.options = {"range": [1, 0]}
    autoencoder.signatures = {"main": generator.signature}
    for handler in (generator, autoencoder):
        with pytest.raises(ValueError, match="expected"):
            handler.setup()
