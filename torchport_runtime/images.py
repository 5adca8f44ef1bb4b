"""Converts image bytes to tensors, for training, parity and handlers alike.

transform = ImageTransform(size=(64, 64), reducing_gap=2)
transform(transform.decode(Path("seven.png").read_bytes()))   # float32 [3, 64, 64]
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from torchport_runtime.errors import BadRequest
from torchport_runtime.scaled_image import ScaledImage, draft

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 89_478_485
"""Maximum number of pixels of an image; more are refused with 413. It is Pillow's threshold for a
decompression bomb, a quarter of a GiB of RGB."""
MIN_REDUCING_GAP = 2
"""Minimum number of decoded pixels to one of the model's, along each side, at a reduced scale."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode_image(content: bytes, mode: str = "RGB") -> Image.Image:
    """Decode PNG, JPEG, WebP, BMP or GIF bytes to an upright image.

    The image is the first frame, in `mode` (RGB or L), whole. `ImageTransform.decode` is faster where the
    image is a photograph of many pixels and the transform needs few.

    Sixteen-bit grey is scaled to eight bits, where Pillow's own conversion would clip it. EXIF
    rotation is applied. An alpha channel is dropped, as `Image.convert` does in training scripts.

    Raises:
        BadRequest: the bytes are no image, truncated, or have more pixels than `MAX_PIXELS`.
    """
    with _refusals(content):
        image = _opened(content)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    return _converted(image, mode)


def decode_scaled(content: bytes, at_least: tuple[int, int], mode: str = "RGB") -> Image.Image | ScaledImage:
    """Decode image bytes as `decode_image` does, a JPEG at a reduced scale if that is large enough.

    The scale is 1/2, 1/4 or 1/8: the smallest that leaves width and height `at_least` so long.
    `MAX_PIXELS` holds for the whole image, and is looked at before anything is decoded.

    Raises:
        BadRequest: as `decode_image` does.
    """
    with _refusals(content):
        image = _opened(content)
        drafted = draft(image, at_least)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    converted = _converted(image, mode)
    return converted if drafted is None else ScaledImage.of(converted, drafted)


def _opened(content: bytes) -> Image.Image:
    """The image before it is decoded, unless it has too many pixels."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadRequest(f"the image has {width} x {height} pixels, more than {MAX_PIXELS}", status=413)
    return image


@contextmanager
def _refusals(content: bytes) -> Iterator[None]:
    """Turns whatever Pillow raises into a BadRequest."""
    try:
        with warnings.catch_warnings():
            # `_opened` has a check of its own; Pillow's warning would reach only the server's log.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except BadRequest:
        raise
    except Image.DecompressionBombError as err:
        raise BadRequest(f"the image has too many pixels: {err}", status=413) from err
    except UnidentifiedImageError as err:
        raise BadRequest(
            f"{len(content)} bytes that are no image: one of {', '.join(FORMATS)} is expected"
        ) from err
    except Exception as err:  # Pillow's decoders raise many kinds on hostile bytes, all of them "bad image".
        raise BadRequest(f"the image is damaged or truncated: {err}") from err


def _converted(upright: Image.Image, mode: str) -> Image.Image:
    if upright.mode == mode:
        return upright
    if upright.mode in ("I;16", "I;16B", "I;16L", "I"):
        # By a table, so that a large picture costs a byte a pixel here and not eight.
        grey = np.asarray(upright)
        if grey.dtype != np.uint16:
            grey = np.clip(grey, 0, 65535).astype(np.uint16)
        upright = Image.fromarray(np.rint(np.arange(65536) / 257).astype(np.uint8)[grey])
    with warnings.catch_warnings():
        # That a palette with transparency should become RGBA: alpha is dropped here, as said above.
        warnings.simplefilter("ignore", UserWarning)
        return upright.convert(mode)


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Resizes images, scales them to [0, 1] and normalises them.

    It is stored with the model as JSON.

    Args:
        size: height and width that the model takes, pixels.
        mode: "RGB" (3 channels) or "L" (1 channel).
        mean, std: per channel, of values in [0, 1].
        fit: "stretch" to the size, or "crop" the centre after the shorter side has been fitted.
        resample: "nearest", "bilinear" or "bicubic" (antialiased, as Pillow does).
        reducing_gap: `decode` reads JPEG files at 1/2, 1/4 or 1/8 of their size, if width and height are
            then at least this many times the model's: 2 or more. It is None where files are decoded whole.

    Raises:
        ValueError: a value that is not one of these.
    """

    size: tuple[int, int]
    mode: str = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: str = "stretch"
    resample: str = "bilinear"
    reducing_gap: float | None = None

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size {self.size}: (height, width) in pixels is expected")
        if self.mode not in ("RGB", "L"):
            raise ValueError(f"mode {self.mode!r}: 'RGB' or 'L' is expected")
        channels = len(self.mode)
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean}, std {self.std}: {channels} values each, std above 0")
        if self.fit not in ("stretch", "crop"):
            raise ValueError(f"fit {self.fit!r}: 'stretch' or 'crop' is expected")
        if self.resample not in _RESAMPLING:
            raise ValueError(f"resample {self.resample!r}: one of {', '.join(_RESAMPLING)}")
        if self.reducing_gap is not None:
            # Antialiasing hides the lost frequencies only if resizing still has pixels to average.
            if not MIN_REDUCING_GAP <= self.reducing_gap < math.inf:
                raise ValueError(
                    f"reducing_gap {self.reducing_gap}: None or at least {MIN_REDUCING_GAP} is expected"
                )
            if self.resample == "nearest":
                raise ValueError("reducing_gap: resample 'bilinear' or 'bicubic' is expected, not 'nearest'")

    def decode(self, content: bytes) -> Image.Image | ScaledImage:
        """Decode a file for this transform: at a reduced scale where `reducing_gap` allows.

        The handlers that come along read their requests with it. A recipe whose transform has a
        `reducing_gap` must read its files with it, too: the model is then trained on what is served.

        Raises:
            BadRequest: as `decode_image` does.
        """
        if self.reducing_gap is None:
            return decode_image(content, self.mode)
        height, width = (math.ceil(side * self.reducing_gap) for side in self.size)
        return decode_scaled(content, (width, height), self.mode)

    def __call__(self, image: Image.Image | ScaledImage) -> np.ndarray:
        """Return float32 of shape [channels, height, width]."""
        height, width = self.size
        pixels = np.asarray(self._fitted(image)).reshape(height, width, -1).transpose(2, 0, 1)
        mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (self.mean, self.std))
        # In place and channel by channel: a third of the time that whole pictures of triples take.
        normalised: np.ndarray = np.array(pixels, dtype=np.float32, order="C")
        normalised /= np.float32(255)
        normalised -= mean
        normalised /= std
        return normalised

    def _fitted(self, image: Image.Image | ScaledImage) -> Image.Image:
        height, width = self.size
        method = _RESAMPLING[self.resample]
        if isinstance(image, ScaledImage):
            box = _centre(image.size, width / height) if self.fit == "crop" else None
            fitted = image.resize((width, height), method, box)
            return fitted if fitted.mode == self.mode else fitted.convert(self.mode)
        if image.mode != self.mode:
            image = image.convert(self.mode)
        if self.fit == "crop":
            return ImageOps.fit(image, (width, height), method)
        return image if image.size == (width, height) else image.resize((width, height), method)

    def to_json(self) -> dict[str, Any]:
        """The transform as options of a handler; without `reducing_gap` where it is None."""
        # Options that were written before there was one keep their digest in certificates.
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in options.items() if k != "reducing_gap" or v is not None}

    @classmethod
    def from_json(cls, transform: Mapping[str, Any]) -> ImageTransform:
        return cls(**transform)


def _centre(size: tuple[int, int], ratio: float) -> tuple[float, float, float, float]:
    """The largest box of that ratio, width to height, in an image's centre, as `ImageOps.fit` cuts it."""
    width, height = min(size[0], size[1] * ratio), min(size[1], size[0] / ratio)
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    return left, top, left + width, top + height
