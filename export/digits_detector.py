"""A detector of handwritten digits: FCOS, with its boxes decoded in the handler.

    torchport ship export/digits_detector.py
    check    done      5 answers as in process, served map50 0.97 (TorchServe 0.12.0, onnxruntime)

A scene holds up to six of the digits in scikit-learn (see digits_resnet18), of different sizes, light
on an uneven, noisy, dark ground. Training draws new scenes in every epoch. The held-out scenes show
digits that are in none of them. torchvision's FCOS decodes its boxes with shapes that depend on the
data. So its dense outputs are exported, and `torchport_runtime.boxes` makes boxes of them, here and in
the handler.
"""

import io
import math
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import NamedTuple

import _digits
import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FeaturePyramidNetwork

from torchport import Example, ImageTransform, Recipe, Request, TensorSpec
from torchport_runtime import decode_image
from torchport_runtime.boxes import BoxDecoder, Letterbox
from torchport_runtime.scaled_image import ScaledImage

SIZE, LABELS = 128, list("0123456789")
SCENES, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 1504, 16, 5e-3, 1e-2
HELDOUT, MOST_DIGITS, EMPTY = 100, 6, 0.02
DOUBTFUL = 5  # Per cent: average precision counts the doubtful boxes too, as its curve's right end.

transform = ImageTransform(size=(SIZE, SIZE), mode="L", mean=(0.0,), std=(1.0,), reducing_gap=2)
letterbox = Letterbox(size=transform.size)
decoder = BoxDecoder(size=transform.size, strides=(8, 16), min_score=0.5)
POINTS = len(decoder.points())


Digit = tuple[Image.Image, int]


class Scene(NamedTuple):
    """A picture, and its digits' boxes, float64 [n, 4], and classes, int64 [n]."""

    picture: Image.Image
    boxes: np.ndarray
    classes: np.ndarray


def split() -> tuple[list[Digit], list[Digit]]:
    """Training and held-out digits: a fifth is held out, the same for every seed."""
    train, test, train_kinds, test_kinds = _digits.split()
    return (
        [(cut(scan), int(kind)) for scan, kind in zip(train, train_kinds, strict=True)],
        [(cut(scan), int(kind)) for scan, kind in zip(test, test_kinds, strict=True)],
    )


def cut(scan: np.ndarray) -> Image.Image:
    """A scan [8, 8] of 0 to 16 as an image of 0 to 255, cut to its ink.

    The image's edges are the digit's box.
    """
    rows, columns = (np.flatnonzero((scan >= 3).any(axis=axis)) for axis in (1, 0))
    inked = scan[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Image.fromarray(np.rint(inked * 255 / 16).astype(np.uint8))


def scene(draw: np.random.Generator, digits: list[Digit], longest: tuple[int, int], count: int) -> Scene:
    """Draw a scene of at most `count` digits that do not overlap.

    `longest` bounds its longer side, in pixels.
    """
    long, ratio = int(draw.integers(*longest)), math.exp(draw.uniform(-0.9, 0.9))
    width, height = (round(long * min(1.0, r)) for r in (ratio, 1 / ratio))
    ground = Image.fromarray(draw.uniform(0, 70, (3, 3)).astype(np.float32))
    canvas = np.array(ground.resize((width, height), Image.Resampling.BILINEAR))
    boxes, classes = [], []
    for _ in range(10 * count):  # A digit for which there is no room is another one in the next try.
        scan, kind = digits[int(draw.integers(len(digits)))]
        stretch = draw.uniform(0.8, 1.25)
        tall = long * math.exp(draw.uniform(math.log(0.14), math.log(0.55)))
        wide = tall * stretch * scan.width / scan.height
        shrink = min(1.0, 0.95 * height / tall, 0.95 * width / wide)
        wide, tall = max(2, round(wide * shrink)), max(2, round(tall * shrink))
        x, y = int(draw.integers(width - wide + 1)), int(draw.integers(height - tall + 1))
        if any(x < x2 and x1 < x + wide and y < y2 and y1 < y + tall for x1, y1, x2, y2 in boxes):
            continue
        ink = np.asarray(scan.resize((wide, tall), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        under = canvas[y : y + tall, x : x + wide]
        under += ink * (draw.uniform(130, 255) - under)
        boxes.append((x, y, x + wide, y + tall))
        classes.append(kind)
        if len(boxes) == count:
            break
    canvas += draw.uniform(0, 20) * draw.standard_normal(canvas.shape, dtype=np.float32)
    picture = Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))
    return Scene(picture, np.array(boxes, np.float64).reshape(-1, 4), np.array(classes, np.int64))


def training_scenes(digits: list[Digit], seed: int, epoch: int) -> list[Scene]:
    """Draw new scenes for every seed and epoch.

    A few are empty, so that the model learns to find nothing there.
    """
    draw = np.random.default_rng((seed, epoch))
    counts = draw.integers(1, MOST_DIGITS + 1, SCENES) * (draw.random(SCENES) >= EMPTY)
    return [scene(draw, digits, (96, 257), int(count)) for count in counts]


def heldout_scenes() -> list[Scene]:
    draw = np.random.default_rng(2024)
    _, digits = split()
    return [scene(draw, digits, (64, 481), int(draw.integers(1, MOST_DIGITS + 1))) for _ in range(HELDOUT)]


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    """The picture as the PNG file that a client would send."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def preprocess(pictures: Sequence[Image.Image | ScaledImage]) -> np.ndarray:
    """Pictures as float32 [n, 1, 128, 128], by the handler's code."""
    return np.stack([transform(letterbox.fit(picture)) for picture in pictures])


def request(file: bytes, content_type: str = "image/png", **params: str) -> Request:
    tensors = {"image": preprocess([transform.decode(file)])}
    return Request(body=file, content_type=content_type, params=params, tensors=tensors)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Backbone(nn.Module):
    """Turns [batch, 1, 128, 128] into two feature maps of `out_channels`, at strides 8 and 16."""

    out_channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            block(1, 16, 2), block(16, 32, 2), block(32, 32), block(32, 64, 2), block(64, 64), block(64, 64)
        )
        self.coarse = nn.Sequential(block(64, 128, 2), block(128, 128))
        self.pyramid = FeaturePyramidNetwork([64, 128], self.out_channels)

    def forward(self, image):
        fine = self.fine(image)
        return self.pyramid(OrderedDict(fine=fine, coarse=self.coarse(fine)))


class Detector(nn.Module):
    """torchvision's FCOS with dense outputs for every point.

    They are logits, distances in strides, and centerness.
    """

    def __init__(self) -> None:
        super().__init__()
        backbone = Backbone()
        strides = tuple((stride,) for stride in decoder.strides)
        self.fcos = FCOS(
            backbone,
            len(LABELS),
            anchor_generator=AnchorGenerator(strides, ((1.0,),) * len(strides)),
            head=FCOSHead(backbone.out_channels, 1, len(LABELS), num_convs=2),
        )

    def dense(self, image):
        return self.fcos.head(list(self.fcos.backbone(image).values()))

    def forward(self, image):
        dense = self.dense(image)
        return dense["cls_logits"], dense["bbox_regression"], dense["bbox_ctrness"]

    def loss(self, images, targets):
        """FCOS's own loss.

        It is focal loss of the classes, GIoU loss of the boxes, and cross entropy of centerness.
        """
        points = torch.from_numpy(decoder.points()).float().to(images.device)
        centers, halves = points[:, :2], points[:, 2:] / 2
        anchors = torch.cat([centers - halves, centers + halves], dim=1)
        counts = [(SIZE // stride) ** 2 for stride in decoder.strides]
        losses = self.fcos.compute_loss(targets, self.dense(images), [anchors] * len(targets), counts)
        return sum(losses.values())


class DigitsDetector(Recipe):
    """Finds handwritten digits in a picture, by FCOS: boxes, labels, scores."""

    name, version, handler = "digits_detector", "1.0", "object_detector"
    inputs = {"image": TensorSpec("float32", ("batch", 1, SIZE, SIZE), low=0.0, high=1.0)}
    outputs = {
        "logits": TensorSpec("float32", ("batch", POINTS, len(LABELS))),
        "distances": TensorSpec("float32", ("batch", POINTS, 4)),
        "centerness": TensorSpec("float32", ("batch", POINTS, 1)),
    }
    dims = {"batch": (1, 32)}
    handler_options = {
        "image": transform.to_json(),
        "labels": LABELS,
        "boxes": decoder.to_json(),
    }
    goals = {"map50": ">= 0.85"}

    def configure(self, *, epochs: int = 8):
        self.epochs = epochs

    def build(self):
        return Detector()

    def train(self, model, run):
        digits, _ = split()
        run.fingerprint(*(np.asarray(scan) for scan, _ in digits), np.array([kind for _, kind in digits]))
        steps = SCENES // BATCH_SIZE
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=max(1, self.epochs) * steps, pct_start=0.2
        )
        state = {"model": model, "optimizer": optimizer, "schedule": schedule}
        for epoch in range(run.restore(**state), self.epochs):
            model.train()
            scenes = training_scenes(digits, run.seed, epoch)
            batches = [scenes[i : i + BATCH_SIZE] for i in range(0, SCENES, BATCH_SIZE)]
            for batch in run.progress(batches, f"epoch {epoch + 1} of {self.epochs}", steps):
                images = torch.from_numpy(preprocess([scene.picture for scene in batch]))
                optimizer.zero_grad()
                model.loss(images.to(run.device), [target(scene, run.device) for scene in batch]).backward()
                optimizer.step()
                schedule.step()
            run.checkpoint(epoch + 1, **state)
        model.cpu()  # The held-out scenes are answered by the CPU's arithmetic, as a server without GPU does.
        examples = list(self.heldout())
        return self.score([answer(model, e.request) for e in examples], [e.expected for e in examples])

    def samples(self):
        yield {"image": preprocess([scene.picture for scene in heldout_scenes()[:32]])}

    def calibration(self, graph):
        digits, _ = split()  # Those that are trained on: no held-out scene shows one of them.
        pictures = [scene.picture for scene in training_scenes(digits, 0, 0)[:128]]
        for start in range(0, len(pictures), 32):
            yield {"image": preprocess(pictures[start : start + 32])}

    def requests(self):
        first, second, *_ = (scene.picture for scene in heldout_scenes())
        colour = Image.merge("RGB", (first, first.point(lambda grey: grey // 2), first))
        photograph = colour.resize((4 * first.width, 4 * first.height))
        return [
            request(encoded(first)),
            request(encoded(second), max_boxes="2", min_score_percent="10"),
            request(encoded(colour, "JPEG"), "image/jpeg"),
            request(encoded(photograph, "JPEG"), "image/jpeg"),  # Decoded at a reduced scale.
            request(encoded(first), draw="1"),
        ]

    def heldout(self):
        for scene in heldout_scenes():
            sides = zip(scene.boxes.tolist(), scene.classes, strict=True)
            truth = {"boxes": [{"box": box, "label": LABELS[index]} for box, index in sides]}
            sent = request(encoded(scene.picture), min_score_percent=str(DOUBTFUL))
            yield Example(request=sent, expected=truth)

    def score(self, answers, expected):
        return {"map50": mean_average_precision(answers, expected)}


def target(scene: Scene, device: str) -> dict[str, torch.Tensor]:
    """A scene's truth in the model's pixels, as torchvision's loss takes it."""
    boxes = torch.from_numpy(letterbox.place(scene.boxes, scene.picture.size)).float()
    return {"boxes": boxes.to(device), "labels": torch.from_numpy(scene.classes).to(device)}


def answer(model: nn.Module, sent: Request) -> dict:
    """The handler's answer to a held-out picture."""
    size = decode_image(sent.content).size
    model.eval()
    with torch.no_grad():
        dense = [output[0].numpy() for output in model(torch.from_numpy(sent.tensors["image"]))]
    found = decoder(*dense, window=letterbox.window(size), min_score=DOUBTFUL / 100)
    return {"boxes": found._replace(boxes=letterbox.restore(found.boxes, size)).to_json(LABELS)}


def annotations(scenes: list[dict]) -> list[dict]:
    """Boxes in COCO's format, with ids from 1.

    They are the truths, or with scores the answers.
    """
    rows = [
        {"image_id": image, "category_id": LABELS.index(found["label"]), "score": found.get("score")}
        | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        for image, scene in enumerate(scenes)
        for found in scene["boxes"]
        for x1, y1, x2, y2 in [found["box"]]
    ]
    return [{"id": number, **row} for number, row in enumerate(rows, start=1)]


def mean_average_precision(answers: list[dict], expected: list[dict]) -> float:
    """COCO's average precision at an IoU of 0.5, averaged over the classes."""
    truths, found = annotations(expected), annotations(answers)
    if not found:
        return 0.0
    images, categories = ([{"id": index} for index in range(count)] for count in (len(expected), len(LABELS)))
    with redirect_stdout(io.StringIO()):  # pycocotools prints what it does.
        truth = COCO()
        truth.dataset = {"images": images, "categories": categories, "annotations": truths}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # Of boxes of all sizes, the 100 best.
    return float(precision[precision >= 0].mean())
