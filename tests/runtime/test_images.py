import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torchport_runtime import BadRequest, ImageTransform, decode_image, images

GREY = ImageTransform(size=(8, 8), mode="L", mean=(0.5,), std=(0.5,))
RGB = ImageTransform(size=(6, 8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png(mode):
    tensor = RGB(decode_image(encoded(gradient(mode))))
    assert tensor.shape == (3, 6, 8)
    assert tensor.dtype == np.float32
    assert np.isfinite(tensor).all()


def test_cmyk_jpeg_becomes_rgb():
    assert decode_image(encoded(gradient("CMYK"), "JPEG")).mode == "RGB"


def test_one_pixel_is_an_image():
    assert RGB(decode_image(encoded(Image.new("RGB", (1, 1), "white")))).shape == (3, 6, 8)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    assert np.asarray(decode_image(encoded(deep), "L")).tolist() == [[0, 100, 255]]


def test_exif_rotation_is_applied():
    wide = gradient(size=(40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotate by 90 degrees to display.
    assert decode_image(encoded(wide, "JPEG", exif=exif)).size == (20, 40)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("L", (8, 8), shade) for shade in (255, 0)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode_image(content, "L")).min() == 255


def test_png_of_the_right_size_is_only_normalised():
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tensor = GREY(decode_image(encoded(Image.fromarray(pixels)), "L"))
    np.testing.assert_allclose(tensor[0], (pixels / 255 - 0.5) / 0.5, atol=1e-6)  # A float32 rounding.


def test_crop_keeps_the_centre():
    wide = Image.new("L", (100, 10), 0)
    wide.paste(255, (45, 0, 55, 10))
    crop = ImageTransform(size=(10, 10), mode="L", mean=(0.0,), std=(1.0,), fit="crop")
    assert crop(wide).min() > 0.9


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(content):
    with pytest.raises(BadRequest) as caught:
        decode_image(content)
    assert caught.value.http_status == 400


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_files_are_refused(kind):
    content = encoded(gradient(size=(200, 200)), kind)
    with pytest.raises(BadRequest, match="truncated"):
        decode_image(content[: len(content) // 2])


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(BadRequest, match="pixels") as caught:
        decode_image(bomb)
    assert caught.value.http_status == 413


def test_formats_that_nobody_asked_for_are_not_decoded():
    with pytest.raises(BadRequest):
        decode_image(encoded(gradient(), "TIFF"))
    assert "EPS" not in images.FORMATS


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_damaged_bytes_end_in_an_image_or_a_reason(junk, at, byte):
    content = bytearray(encoded(gradient(size=(9, 9))))
    content[at % len(content)] = byte
    for hostile in (junk, bytes(content)):
        try:
            decode_image(hostile)
        except BadRequest as err:
            assert 400 <= err.http_status < 500


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (0, 8)},
        {"size": (8,)},
        {"size": (8, 8), "mode": "HSV"},
        {"size": (8, 8), "mode": "L"},
        {"size": (8, 8), "fit": "pad"},
        {"size": (8, 8), "resample": "sinc"},
    ],
)
def test_transforms_are_checked_when_made(wrong):
    with pytest.raises(ValueError, match="expected|each|one of"):
        ImageTransform(**wrong)


def test_transform_travels_as_json():
    assert ImageTransform.from_json(RGB.to_json()) == RGB
