"""JPEG photographs decoded at a reduced scale: the same picture, the same place, never too few pixels."""

import io
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torchport_runtime import BadRequest, ImageTransform, decode_image
from torchport_runtime.boxes import Letterbox
from torchport_runtime.images import MAX_PIXELS, decode_scaled
from torchport_runtime.scaled_image import ScaledImage

LEVELS, EDGE_LEVELS = 5, 12
"""Maximum difference from the whole image's decoding, in grey levels, within the image and along its edges.

Within: JPEG's and two resizings' rounding to whole levels, and the mean of 8 pixels of `waves` is up to a
level flatter than they are. `waves` change by 6 levels and more from a pixel to the next, so that a shift by
one pixel of a photograph of a thousand is found. Edges: up to 7 of the 8 pixels that the last decoded one
stands for are JPEG's own padding, and have a twentieth of the weight in the last pixel of the tensor."""
ORIENTATIONS = range(1, 9)
SIZE = (32, 40)


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def waves(width, height, mode="RGB"):
    """A picture without high frequencies that is steep nearly everywhere, and no two quarters are alike."""
    y, x = np.mgrid[:height, :width]
    planes = [127.5 + 120 * np.sin(x / 20 + y / a + a) for a in (25, 90, -40)]
    picture = Image.fromarray(np.rint(np.stack(planes, axis=-1)).astype(np.uint8))
    return picture.convert(mode)


def turned(image, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif, **options)


def transform(**options):
    given = {"size": SIZE, "mean": (0.0,) * 3, "std": (1.0,) * 3, "reducing_gap": 2}
    return ImageTransform(**given | options)


def require_same(scaled, whole):
    """The pixels [height, width, ...] of a scaled image are those of the whole one, but for roundings."""
    assert scaled.shape == whole.shape
    apart = np.abs(scaled.astype(np.float64) - whole)
    assert apart.max() <= EDGE_LEVELS
    assert apart[1:-1, 1:-1].max() <= LEVELS


def require_same_tensors(made, content):
    images = made.decode(content), decode_image(content, made.mode)
    require_same(*(255 * made(image).transpose(1, 2, 0) for image in images))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(1001, 803), (695, 1097)])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_a_photograph_is_what_its_whole_decoding_is(orientation, size, fit):
    """Whatever its shape and however it is turned, though 8 divides neither of its sides."""
    content, made = turned(waves(*size), orientation), transform(fit=fit)
    scaled = made.decode(content)
    assert isinstance(scaled, ScaledImage)
    assert scaled.scale == 8
    assert scaled.size == decode_image(content).size
    require_same_tensors(made, content)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "scale"), [((160, 128), 2), ((403, 259), 4), ((645, 519), 8)])
def test_every_scale(resample, size, scale):
    content, made = encoded(waves(*size)), transform(resample=resample, fit="crop")
    assert made.decode(content).scale == scale
    require_same_tensors(made, content)


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_letterbox_holds_the_same(orientation):
    content, letterbox = turned(waves(1001, 803), orientation), Letterbox(size=SIZE, fill=9)
    scaled, whole = transform().decode(content), decode_image(content)
    assert isinstance(scaled, ScaledImage)
    assert letterbox.window(scaled.size) == letterbox.window(whole.size)
    box = letterbox.window(whole.size)
    inside = np.s_[box.top : box.top + box.height, box.left : box.left + box.width]
    require_same(*(np.asarray(letterbox.fit(picture))[inside] for picture in (scaled, whole)))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encoded(waves(701, 703, "CMYK")), id="CMYK"),
        pytest.param(encoded(waves(701, 703, "L")), id="grey"),
        pytest.param(encoded(waves(701, 703), progressive=True), id="progressive"),
        pytest.param(encoded(waves(701, 703), subsampling="4:4:4"), id="colours in full"),
        pytest.param(
            encoded(waves(701, 703), "MPO", save_all=True, append_images=[waves(90, 90)]),
            id="two pictures",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_kind_of_jpeg(content, mode):
    channels = len(mode)
    made = transform(mode=mode, mean=(0.0,) * channels, std=(1.0,) * channels)
    assert isinstance(made.decode(content), ScaledImage)
    require_same_tensors(made, content)


SIDES = st.integers(1, 700)


@given(SIDES, SIDES, st.sampled_from(ORIENTATIONS), st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_never_fewer_pixels_than_were_asked_for(width, height, orientation, at_least):
    content = turned(Image.new("L", (width, height)), orientation)
    whole, decoded = decode_image(content, "L").size, decode_scaled(content, at_least, "L")
    assert decoded.size == whole
    scale = decoded.scale if isinstance(decoded, ScaledImage) else 1
    pixels = decoded.pixels if isinstance(decoded, ScaledImage) else decoded
    assert pixels.size == tuple(math.ceil(side / scale) for side in whole)
    if scale > 1:
        assert pixels.width >= at_least[0]
        assert pixels.height >= at_least[1]
    if scale < 8:  # The next scale would be too small along one of the sides.
        assert any(side // (2 * scale) < least for side, least in zip(whole, at_least, strict=True))


@pytest.mark.parametrize("size", [(28, 28), (40, 32), (79, 63), (4000, 127), (159, 900)])
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_a_small_picture_keeps_every_bit(size, fit):
    """It is never decoded to fewer pixels than twice the model's, along either side."""
    content = encoded(waves(*size))
    whole = transform(fit=fit, reducing_gap=None)
    assert np.array_equal(transform(fit=fit)(transform().decode(content)), whole(decode_image(content)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF"])
def test_other_formats_keep_every_bit(kind):
    content, whole = encoded(waves(1001, 803), kind), transform(reducing_gap=None)
    assert np.array_equal(transform()(transform().decode(content)), whole(decode_image(content)))


def test_without_a_reducing_gap_every_bit_stays_and_options_do():
    whole, content = transform(reducing_gap=None), encoded(waves(1001, 803))
    assert "reducing_gap" not in whole.to_json()
    assert ImageTransform.from_json(whole.to_json()) == whole
    assert np.array_equal(np.asarray(whole.decode(content)), np.asarray(decode_image(content)))


def test_a_reducing_gap_travels_as_json():
    assert transform().to_json()["reducing_gap"] == 2
    assert ImageTransform.from_json(transform().to_json()) == transform()


@pytest.mark.parametrize("gap", [1.9, 0, -2, math.nan, math.inf])
def test_a_gap_that_would_blur_is_refused(gap):
    with pytest.raises(ValueError, match="at least 2"):
        transform(reducing_gap=gap)


def test_nearest_has_no_reducing_gap():
    with pytest.raises(ValueError, match="nearest"):
        transform(resample="nearest")


def with_size(content, width, height):
    """The JPEG file with another size in its header, as a decompression bomb has it."""
    at = content.index(b"\xff\xc0") + 5  # Start of frame: marker, length, precision, height, width.
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


@pytest.mark.parametrize("size", [(10_000, 9_000), (65_500, 65_500)])
def test_a_bomb_is_refused_before_it_is_decoded(size, monkeypatch):
    """However small it would become: at a reduced scale a bomb still has all its blocks."""
    assert size[0] * size[1] > MAX_PIXELS
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it is decoded"))
    with pytest.raises(BadRequest, match="pixels") as caught:
        transform().decode(with_size(encoded(waves(64, 64)), *size))
    assert caught.value.http_status == 413


def test_a_truncated_photograph_is_refused():
    content = encoded(waves(1001, 803))
    with pytest.raises(BadRequest, match="truncated") as caught:
        transform().decode(content[: len(content) // 2])
    assert caught.value.http_status == 400


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_damaged_photographs_end_in_a_tensor_or_a_reason(at, junk):
    content = bytearray(DAMAGED)
    at %= len(content)
    content[at : at + len(junk)] = junk
    made = transform(size=(8, 8))
    try:
        assert made(made.decode(bytes(content))).shape == (3, 8, 8)
    except BadRequest as err:
        assert 400 <= err.http_status < 500


DAMAGED = turned(waves(90, 70), 6)
