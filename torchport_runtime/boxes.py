"""Fits pictures into a detector's input, and decodes its outputs to boxes.

Training, parity and the handler call the same code, which needs numpy only.

    letterbox = Letterbox(size=(128, 128))
    picture = transform.decode(content)                 # an `ImageTransform` of the same size
    square = letterbox.fit(picture)                     # aspect kept, padded
    find = BoxDecoder(size=(128, 128), strides=(8, 16))
    found = find(logits, distances, centerness, window=letterbox.window(picture.size))
    letterbox.restore(found.boxes, picture.size)        # in the picture's own pixels

A box is x1, y1, x2, y2: pixels from the left and the top edge, so a picture ends at its width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from torchport_runtime.scaled_image import ScaledImage


class Window(NamedTuple):
    """A picture's place in the model's input, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """Fits pictures into a fixed size: aspect kept, centred, the rest filled.

    Args:
        size: height and width that the model takes, pixels.
        fill: the padding's grey level, 0 to 255.

    Raises:
        ValueError: a value that is not one of these.
    """

    size: tuple[int, int]
    fill: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size(self.size))
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill {self.fill}: a grey level from 0 to 255 is expected")

    def window(self, picture: tuple[int, int]) -> Window:
        """The place of a picture of (width, height) in the model's input.

        Its sides are at least one pixel long.
        """
        height, width = self.size
        scale = min(width / picture[0], height / picture[1])
        fitted = [
            min(side, max(1, round(scale * own))) for own, side in zip(picture, (width, height), strict=True)
        ]
        return Window((width - fitted[0]) // 2, (height - fitted[1]) // 2, *fitted)

    def fit(self, picture: Image.Image | ScaledImage) -> Image.Image:
        """Fit the picture into an image of the model's size.

        The picture's mode stays.
        """
        window = self.window(picture.size)
        if isinstance(picture, ScaledImage) or picture.size != (window.width, window.height):
            picture = picture.resize((window.width, window.height), Image.Resampling.BILINEAR)
        canvas = Image.new(picture.mode, self.size[::-1], (self.fill,) * len(picture.getbands()))
        canvas.paste(picture, (window.left, window.top))
        return canvas

    def place(self, boxes: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
        """Convert a picture's boxes [n, 4] to the model's pixels, for training.

        `picture` is its width and height.
        """
        window = self.window(picture)
        factor = np.array([window.width / picture[0], window.height / picture[1]] * 2)
        return np.asarray(boxes * factor + np.array([window.left, window.top] * 2))

    def restore(self, boxes: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
        """Convert the model's boxes [n, 4] to the picture's pixels, clipped."""
        window = self.window(picture)
        # Each side by its own factor: a fitted side is a whole number of pixels.
        factor = np.array([picture[0] / window.width, picture[1] / window.height] * 2)
        own = (boxes - np.array([window.left, window.top] * 2)) * factor
        return np.asarray(np.clip(own, 0.0, np.array(picture * 2, dtype=np.float64)))


class Detections(NamedTuple):
    """One picture's detections, best first.

    Boxes are float64 [n, 4], classes int64 [n], scores float64 [n].
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def to_json(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """The detections as an answer's JSON.

        Sides are rounded to a thousandth of a pixel, scores to a millionth.
        """
        return [
            {"box": [round(side, 3) for side in box], "label": labels[kind], "score": round(score, 6)}
            for box, kind, score in zip(
                self.boxes.tolist(), self.classes.tolist(), self.scores.tolist(), strict=True
            )
        ]


@dataclass(frozen=True, kw_only=True)
class BoxDecoder:
    """Decodes the outputs of an anchor-free detector (FCOS, https://arxiv.org/abs/1904.01355).

    The points are those of the feature maps, one map after the other, each row by row.

    Args:
        size: height and width of the model's input, pixels.
        strides: pixels between neighbouring points, of each feature map in the outputs' order.
        offset: where a map's first point lies, in strides: 0 in torchvision's FCOS, 0.5 in the paper's.
        unit: unit of the distances to a box's sides: "stride" or "pixel".
        score: how class and centerness probability become one: their "sqrt" of the product, as in
            torchvision's FCOS, or the "product".
        min_score: detections below it are left out, 0 to 1.
        nms_iou: of two boxes of one class that overlap by more than this, the better stays.
        max_boxes: maximum number of boxes of one picture.
        candidates: number of the best detections among which overlaps are suppressed.

    Raises:
        ValueError: a value that is not one of these.
    """

    size: tuple[int, int]
    strides: tuple[int, ...]
    offset: float = 0.0
    unit: str = "stride"
    score: str = "sqrt"
    min_score: float = 0.3
    nms_iou: float = 0.5
    max_boxes: int = 100
    candidates: int = 400

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size(self.size))
        object.__setattr__(self, "strides", tuple(self.strides))
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides {self.strides}: one or more, each of at least 1 pixel")
        for name, known in (("unit", ("stride", "pixel")), ("score", ("sqrt", "product"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}: one of {', '.join(known)} is expected")
        for name in ("min_score", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: a number from 0 to 1 is expected")
        if not 1 <= self.max_boxes <= self.candidates:
            raise ValueError(f"max_boxes {self.max_boxes}: 1 to {self.candidates} (candidates) is expected")

    def points(self) -> np.ndarray:
        """x, y and stride of each point: float64 [points, 3]."""
        maps = []
        for stride in self.strides:
            rows, columns = (-(-side // stride) for side in self.size)
            y, x = np.mgrid[:rows, :columns].reshape(2, -1) + self.offset
            maps.append(np.stack([x * stride, y * stride, np.full(x.shape, float(stride))], axis=1))
        return np.concatenate(maps)

    def __call__(
        self,
        logits: np.ndarray,
        distances: np.ndarray,
        centerness: np.ndarray | None = None,
        *,
        window: Window | None = None,
        min_score: float | None = None,
        max_boxes: int | None = None,
    ) -> Detections:
        """Decode one picture's boxes, in the model's pixels.

        Args:
            logits: [points, classes], each class on its own: a sigmoid makes the probability.
            distances: [points, 4], to the left, top, right and bottom side of the box.
            centerness: logits [points] or [points, 1], where the model has them.
            window: where the picture lies; boxes are clipped to it, and those outside are dropped.
            min_score, max_boxes: in place of the decoder's own.
        """
        scores = _sigmoid(logits)
        if centerness is not None:
            scores = scores * _sigmoid(centerness).reshape(-1, 1)
            scores = np.sqrt(scores) if self.score == "sqrt" else scores
        flat = scores.ravel()
        (above,) = np.nonzero(flat >= (self.min_score if min_score is None else min_score))
        best = above[np.argsort(-flat[above], kind="stable")][: self.candidates]
        point, classes = np.divmod(best, scores.shape[1])
        boxes = self._boxes(self.points()[point], distances[point].astype(np.float64))
        left, top, width, height = window or (0, 0, self.size[1], self.size[0])
        boxes = np.clip(boxes, [left, top] * 2, [left + width, top + height] * 2)
        visible = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        boxes, classes, kept_scores = boxes[visible], classes[visible], flat[best][visible]
        keep = suppress(boxes, classes, self.nms_iou)[: max_boxes or self.max_boxes]
        return Detections(boxes[keep], classes[keep], kept_scores[keep])

    def _boxes(self, points: np.ndarray, distances: np.ndarray) -> np.ndarray:
        pixels = distances * points[:, 2:] if self.unit == "stride" else distances
        return np.concatenate([points[:, :2] - pixels[:, :2], points[:, :2] + pixels[:, 2:]], axis=1)

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, decoder: Mapping[str, Any]) -> BoxDecoder:
        return cls(**decoder)


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of two sets of boxes.

    Boxes [n, 4] and others [m, 4] give float64 [n, m]. It is 0 for empty boxes.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=2)
    area, other_area = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    union = area[:, None] + other_area[None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0))


def suppress(boxes: np.ndarray, classes: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression, class by class; returns the indices to keep.

    `boxes` [n, 4] come best first.
    """
    rivals = (iou(boxes, boxes) > threshold) & (classes[:, None] == classes[None])
    alive = np.ones(len(boxes), dtype=bool)
    for index in range(len(boxes)):
        if alive[index]:
            alive[index + 1 :] &= ~rivals[index, index + 1 :]
    return np.flatnonzero(alive)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def _size(size: tuple[int, ...]) -> tuple[int, ...]:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size {tuple(size)}: (height, width) in pixels is expected")
    return tuple(size)
