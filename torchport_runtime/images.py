"""Converts image bytes to tensors, for training, parity and handlers alike.

transform = ImageTransform(size=(64, 64))
transform(decode_image(Path("seven.png").read_bytes()))   # float32 [3, 64, 64]
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from torchport_runtime.errors import BadRequest

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 89_478_485
"""Maximum number of pixels of an image; more are refused with 413. It is Pillow's threshold for a
decompression bomb, a quarter of a GiB of RGB."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode_image(content: bytes, mode: str = "RGB") -> Image.Image:
    """Decode PNG, JPEG, WebP, BMP or GIF bytes to an upright image.

    The image is the first frame, in `mode` (RGB or L).

    Sixteen-bit grey is scaled to eight bits, where Pillow's own conversion would clip it. EXIF
    rotation is applied. An alpha channel is dropped, as `Image.convert` does in training scripts.

    Raises:
        BadRequest: the bytes are no image, truncated, or have more pixels than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            # Ours is the check below; Pillow's warning would reach only the server's log.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadRequest(
                    f"the image has {width} x {height} pixels, more than {MAX_PIXELS}", status=413
                )
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
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
    upright: Image.Image = image
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

    Raises:
        ValueError: a value that is not one of these.
    """

    size: tuple[int, int]
    mode: str = "RGB"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: str = "stretch"
    resample: str = "bilinear"

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

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return float32 of shape [channels, height, width]."""
        height, width = self.size
        if image.mode != self.mode:
            image = image.convert(self.mode)
        method = _RESAMPLING[self.resample]
        if self.fit == "crop":
            image = ImageOps.fit(image, (width, height), method)
        elif image.size != (width, height):
            image = image.resize((width, height), method)
        pixels = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
        mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (self.mean, self.std))
        # In place and channel by channel: a third of the time that whole pictures of triples take.
        normalised: np.ndarray = np.array(pixels, dtype=np.float32, order="C")
        normalised /= np.float32(255)
        normalised -= mean
        normalised /= std
        return normalised

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, transform: Mapping[str, Any]) -> ImageTransform:
        return cls(**transform)
