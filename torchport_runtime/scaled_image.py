"""A JPEG photograph, decoded at a fraction of its size.

    picture = transform.decode(content)       # an image, or one of these where that is enough
    picture.size                              # the whole photograph's, upright
    picture.resize((224, 224), Image.Resampling.BILINEAR)

Of each block of 8 x 8 pixels libjpeg then computes 4 x 4, 2 x 2 or one, from the block's low frequencies
alone. That takes two thirds of the time, and resizing has a sixteenth of the pixels to read, or fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

ORIENTATION = 0x0112
"""EXIF's tag that says how an image has to be turned to be upright, 1 to 8."""
_SWAPS_SIDES = (5, 6, 7, 8)
_REVERSES_X, _REVERSES_Y = (2, 3, 6, 7), (3, 4, 7, 8)


class Draft(NamedTuple):
    """How a file is going to be decoded.

    `size` is the whole image's width and height, before it is turned upright. `scale` is the number of its
    pixels to one decoded pixel, along each side: 2, 4 or 8.
    """

    size: tuple[int, int]
    scale: int
    orientation: int


@dataclass(frozen=True, kw_only=True)
class ScaledImage:
    """An upright image, decoded at a fraction of its size.

    Args:
        pixels: the decoded pixels.
        size: width and height of the whole image, pixels.
        scale: number of the whole image's pixels to one decoded pixel, along each side.
        left, top: where the image begins, in decoded pixels.
    """

    pixels: Image.Image
    size: tuple[int, int]
    scale: int
    left: float
    top: float

    @classmethod
    def of(cls, pixels: Image.Image, draft: Draft) -> ScaledImage:
        """The image of pixels that have been decoded as `draft` says, and turned upright."""
        width, height = draft.size[::-1] if draft.orientation in _SWAPS_SIDES else draft.size
        # A side that the scale does not divide ends within its last decoded pixel. The rest of that pixel
        # is no part of the image, and lies in front of it where turning has reversed the side.
        left = pixels.width - width / draft.scale if draft.orientation in _REVERSES_X else 0.0
        top = pixels.height - height / draft.scale if draft.orientation in _REVERSES_Y else 0.0
        return cls(pixels=pixels, size=(width, height), scale=draft.scale, left=left, top=top)

    def resize(
        self,
        size: tuple[int, int],
        resample: Image.Resampling,
        box: tuple[float, float, float, float] | None = None,
    ) -> Image.Image:
        """Resize to (width, height), as `Image.resize` does; `box` is in the whole image's pixels."""
        x1, y1, x2, y2 = box or (0, 0, *self.size)
        scaled = (
            self.left + x1 / self.scale,
            self.top + y1 / self.scale,
            min(self.pixels.width, self.left + x2 / self.scale),  # Pillow takes no rounding beyond the edge.
            min(self.pixels.height, self.top + y2 / self.scale),
        )
        return self.pixels.resize(size, resample, box=scaled)


def draft(image: Image.Image, at_least: tuple[int, int]) -> Draft | None:
    """Have an image decoded at the smallest scale that leaves it large enough.

    It must not have been loaded. Only JPEG files can be; None says that the image is decoded whole.

    Args:
        at_least: minimum width and height of the decoded image once it is upright, pixels.
    """
    if image.format not in ("JPEG", "MPO"):  # An MPO file holds several JPEG images; the first is decoded.
        return None
    size, orientation = image.size, image.getexif().get(ORIENTATION, 1)
    drafted = image.draft(None, at_least[::-1] if orientation in _SWAPS_SIDES else at_least)
    if drafted is None or image.size == size:
        return None
    _, (_, _, width, _) = drafted
    return Draft(size, round(size[0] / width), orientation)
