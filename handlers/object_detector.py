"""Finds objects in a picture: boxes with labels and scores, best first.

    curl -T scene.png http://127.0.0.1:8080/predictions/digits_detector
    {"boxes": [{"box": [24.118, 30.906, 61.52, 88.731], "label": "7", "score": 0.931274}],
     "width": 200, "height": 150}
    curl -F data=@scene.png -F draw=1 http://127.0.0.1:8080/predictions/digits_detector > drawn.png

A box is [x1, y1, x2, y2] in the picture's own pixels, from the left and the top edge of the upright
picture (an EXIF rotation is applied first). `width` and `height` are the picture's. Fields of a form
are `max_boxes`; `min_score_percent`, 0 to 100; and `draw=1`, which answers with a PNG of the picture
with its boxes.

The graph has one image input [batch, channels, height, width] and the outputs of an anchor-free
detector such as FCOS, in this order: class logits [batch, points, classes]; distances to a box's four
sides [batch, points, 4]; logits of centerness [batch, points, 1], if the model has them.

Options (the recipe's `handler_options`):

    image    an `ImageTransform`: size, mode (RGB or L), mean and std. The picture is fitted into the
             size by letterbox, whatever `fit` says
    fill     the grey level of the letterbox's padding (0)
    labels   the classes' names; or an asset `labels.txt` with one per line
    boxes    a `BoxDecoder`; its size is that of `image`:
        strides      of the feature maps, pixels, in the order of their points
        offset       of a map's first point, in strides (0; 0.5 if points are cells' centres)
        unit         of the distances: "stride" or "pixel" ("stride")
        score        of class and centerness probability: "sqrt" of their product, or "product" ("sqrt")
        min_score    minimum score of an answered box, unless the request says another (0.3)
        nms_iou      maximum overlap of two boxes of a class; beyond it they are one (0.5)
        max_boxes    maximum number of boxes, unless the request says another (100)
        candidates   number of best boxes that enter the suppression of overlaps (400)
"""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

import torchport_runtime as runtime
from torchport_runtime.boxes import BoxDecoder, Letterbox

MAX_DRAWN_PIXELS = 2_000_000
"""Maximum pixels of a drawn picture. A larger one is drawn smaller: RGB noise of as many pixels is a PNG
of 6 MB, and TorchServe limits an answer to 6.5 MB."""


class ObjectDetector(runtime.Handler):
    """Fits the picture, runs the graph, decodes boxes, suppresses overlaps."""

    def setup(self) -> None:
        self.transform = runtime.ImageTransform.from_json(self.options["image"])
        self.letterbox = Letterbox(size=self.transform.size, fill=int(self.options.get("fill", 0)))
        self.decoder = BoxDecoder.from_json({**self.options["boxes"], "size": self.transform.size})
        logits, distances, *others = self.signature.outputs.values()
        if "labels" in self.options:
            self.labels = [str(label) for label in self.options["labels"]]
        else:
            self.labels = (self.assets / "labels.txt").read_text(encoding="utf-8").splitlines()
        for what, own, graph in (
            ("labels", len(self.labels), logits.shape[-1]),
            ("points (of size and strides)", len(self.decoder.points()), logits.shape[1]),
            ("distances", 4, distances.shape[-1]),
        ):
            if isinstance(graph, int) and own != graph:
                raise ValueError(f"the options make {own} {what}, the graph's outputs are made for {graph}")
        if len(others) > 1:
            raise ValueError("the graph has more outputs than logits, distances and centerness")

    def decode(self, request: runtime.InferenceRequest) -> dict[str, np.ndarray]:
        self._wishes(request)  # Wrong ones must fail here, alone, before the model has run for them.
        (name,) = self.signature.inputs
        picture = self.transform.decode(request.content)
        request.picture_size = picture.size  # The request lives as long as its answer takes.
        return {name: self.transform(self.letterbox.fit(picture))[None]}

    def encode(self, request: runtime.InferenceRequest, outputs: dict[str, np.ndarray]) -> Any:
        max_boxes, min_score, draw = self._wishes(request)
        dense = [outputs[name][0] for name in self.signature.outputs]
        if not all(np.isfinite(array).all() for array in dense):
            raise runtime.BadRequest("the model's answer to this picture is NaN or Inf", status=422)
        size = request.picture_size
        found = self.decoder(
            *dense, window=self.letterbox.window(size), min_score=min_score, max_boxes=max_boxes
        )
        boxes = found._replace(boxes=self.letterbox.restore(found.boxes, size)).to_json(self.labels)
        if draw:
            return runtime.Answer(drawn(request.content, boxes, self.labels), "image/png")
        return {"boxes": boxes, "width": size[0], "height": size[1]}

    def _wishes(self, request: runtime.InferenceRequest) -> tuple[int, float, bool]:
        """The form's fields: maximum number of boxes, minimum score, whether to draw."""
        request.refuse_unknown_fields(["max_boxes", "min_score_percent", "draw"])
        most = request.param("max_boxes", self.decoder.max_boxes, low=1, high=self.decoder.candidates)
        percent = request.param("min_score_percent", -1, low=0, high=100)
        draw = request.param("draw", 0, low=0, high=1)
        return most, self.decoder.min_score if percent < 0 else percent / 100, bool(draw)


def drawn(content: bytes, boxes: list[dict[str, Any]], labels: list[str]) -> bytes:
    """The picture as PNG with its boxes, labels and scores.

    Each class has its own colour.
    """
    picture = runtime.decode_image(content)
    scale = min(1.0, (MAX_DRAWN_PIXELS / (picture.width * picture.height)) ** 0.5)
    if scale < 1:
        size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(10, max(picture.size) // 30))
    for found in reversed(boxes):  # The best one last, on top.
        colour = ImageColor.getrgb(f"hsl({360 * labels.index(found['label']) // len(labels)}, 100%, 60%)")
        x1, y1, x2, y2 = (round(side * scale) for side in found["box"])
        outline = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        pen.rectangle(outline, outline=colour, width=max(1, max(picture.size) // 300))
        text = f"{found['label']} {found['score']:.0%}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        # Above the box where there is room, else inside; never beyond the right edge.
        x = max(0, min(x1, picture.width - (right - left) - 2))
        y = y1 - bottom - 2 if y1 > bottom else y1
        pen.rectangle((x, y + top - 1, x + right - left + 2, y + bottom + 1), fill=colour)
        pen.text((x + 1 - left, y), text, fill="black", font=font)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
