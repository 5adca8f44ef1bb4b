"""ResNet-18 at 224 x 224, as it is served for real pictures, on the two photographs of scikit-learn.

    torchport ship bench/resnet18_224.py

What it knows does not matter here, only what it costs. It is random but for its last layer, which tells the
two photographs apart wherever they are cut: so a server's answer can be held against another's, though they
cut the picture differently.
"""

import io
from importlib.resources import files

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from torchport import ImageTransform, Recipe, Request, Serving, TensorSpec
from torchport_runtime import decode_image

PHOTOGRAPHS = ("china", "flower")
CLASSES = 1000
MARGIN = 8.0
"""The logit of a photograph's own class, about; those of the other 998 lie around 0."""


def photograph(name: str) -> bytes:
    """One of scikit-learn's photographs, a JPEG file of 640 x 427 pixels."""
    return (files("sklearn.datasets.images") / f"{name}.jpg").read_bytes()


def enlarged(name: str, times: int) -> bytes:
    """A photograph with so many times its width and height, as a JPEG file of quality 90."""
    image, buffer = decode_image(photograph(name)), io.BytesIO()
    large = image.resize((image.width * times, image.height * times), Image.Resampling.BICUBIC)
    large.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class ResNet18(Recipe):
    """ResNet-18 for pictures of 224 x 224 pixels, to be measured and not to be believed."""

    name, version, handler = "resnet18_224", "1.0", "image_classifier"
    transform = ImageTransform(size=(224, 224), fit="crop", reducing_gap=2)
    inputs = {"image": TensorSpec("float32", ("batch", 3, 224, 224))}
    outputs = {"logits": TensorSpec("float32", ("batch", CLASSES))}
    dims = {"batch": (1, 32)}
    handler_options = {
        "image": transform.to_json(),
        "labels": [*PHOTOGRAPHS, *(f"class {number}" for number in range(2, CLASSES))],
    }
    backends = ships = ("onnxruntime",)
    serving = Serving(batch_size=8)

    def build(self):
        return resnet18(weights=None)

    def pieces(self, name: str, count: int) -> np.ndarray:
        """Random pieces of a photograph, float32 [count, 3, 224, 224]; the first is the whole of it."""
        image, places = decode_image(photograph(name)), np.random.default_rng(0)
        pictures = [image]
        while len(pictures) < count:
            side = int(places.integers(image.height * 3 // 4, image.height))
            left, top = (int(places.integers(0, size - side)) for size in image.size)
            pictures.append(image.crop((left, top, left + side, top + side)))
        return np.stack([self.transform(picture) for picture in pictures])

    @torch.no_grad()
    def train(self, model, run):
        china, flower = (torch.from_numpy(self.pieces(name, 16)).to(run.device) for name in PHOTOGRAPHS)
        run.fingerprint(china.cpu().numpy(), flower.cpu().numpy())
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # Statistics are the mean of what comes, not a moving one.
        last, model.fc = model.fc, nn.Identity()
        model.train()(torch.cat([china, flower]))
        model.eval()
        means = [model(pictures).mean(0) for pictures in (china, flower)]
        towards = means[0] - means[1]
        towards *= 2 * MARGIN / towards.square().sum()
        threshold = towards @ (means[0] + means[1]) / 2
        for row, sign in enumerate((1, -1)):
            last.weight[row], last.bias[row] = sign * towards, -sign * threshold
        model.fc = last
        right = [(model(x).argmax(1) == label).float().mean() for label, x in enumerate((china, flower))]
        return {"accuracy": float(sum(right) / len(right))}

    def samples(self):
        for name in PHOTOGRAPHS:
            yield {"image": self.pieces(name, 4)}

    def requests(self):
        bodies = [*map(photograph, PHOTOGRAPHS), enlarged(PHOTOGRAPHS[0], 3)]
        return [
            Request(
                body=body,
                content_type="image/jpeg",
                tensors={"image": self.transform(self.transform.decode(body))[None]},
            )
            for body in bodies
        ]
