"""ResNet-18 on handwritten digits: preprocess, define, train, evaluate, the whole way.

    torchport ship export/digits_resnet18.py
    torchport train digits_resnet18 --image-size 224 --epochs 3

The data are in `_digits.py`: 1,437 scans to train on, 360 held out. They have no more than 8 x 8
pixels: 64 are plenty. 224 is the size of ImageNet's models, and shows what that size costs.
"""

import io
from dataclasses import replace

import numpy as np
import torch
from _digits import accuracy, png, split
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from torchport import Example, ImageTransform, Recipe, Request, TensorSpec


def jpeg(scan: bytes, size: tuple[int, int]) -> bytes:
    """A scan as a photograph of (width, height) pixels."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(scan)).resize(size).convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


class DigitsResNet18(Recipe):
    """Handwritten digits, 0 to 9, by ResNet-18."""

    name, version, handler = "digits_resnet18", "1.0", "image_classifier"
    transform = ImageTransform(size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), reducing_gap=2)
    inputs = {"image": TensorSpec("float32", ("batch", 3, 64, 64))}
    outputs = {"logits": TensorSpec("float32", ("batch", 10))}
    dims = {"batch": (1, 32)}
    handler_options = {"image": transform.to_json(), "labels": list("0123456789"), "top_k": 5}
    goals = {"accuracy": ">= 0.97"}
    batch_size, learning_rate = 32, 0.05

    def configure(self, *, epochs: int = 6, image_size: int = 64):
        self.epochs = epochs
        self.transform = replace(self.transform, size=(image_size, image_size))
        self.inputs = {"image": TensorSpec("float32", ("batch", 3, image_size, image_size))}
        self.handler_options = self.handler_options | {"image": self.transform.to_json()}

    def build(self):
        return resnet18(num_classes=10)

    def preprocess(self, files):
        """Image files as float32 [n, 3, height, width], by the handler's code."""
        return np.stack([self.transform(self.transform.decode(file)) for file in files])

    def train(self, model, run):
        train_scans, test_scans, train_labels, test_labels = split()
        images = self.preprocess(map(png, train_scans))
        run.fingerprint(images, train_labels)
        x, y = torch.from_numpy(images), torch.from_numpy(train_labels)
        steps = len(x) // self.batch_size
        loss_function = nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(
            model.parameters(), self.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=self.epochs * steps
        )
        state = {"model": model, "optimizer": optimizer, "schedule": schedule}
        for epoch in range(run.restore(**state), self.epochs):
            model.train()
            order = torch.randperm(len(x))
            batches = order[: steps * self.batch_size].split(self.batch_size)
            for batch in run.progress(batches, f"epoch {epoch + 1} of {self.epochs}", steps):
                optimizer.zero_grad()
                loss = loss_function(model(x[batch].to(run.device)), y[batch].to(run.device))
                loss.backward()
                optimizer.step()
                schedule.step()
            run.checkpoint(epoch + 1, **state)
        return {
            "accuracy": accuracy(model, self.preprocess(map(png, test_scans)), test_labels, run.device),
            "train_accuracy": accuracy(model, images, train_labels, run.device),
        }

    def samples(self):
        _, test_scans, _, _ = split()
        images = self.preprocess(map(png, test_scans[:64]))
        yield {"image": images[:32]}
        yield {"image": images[32:]}

    def calibration(self, graph):
        """A quarter of the training scans, drawn at random: none is held out."""
        train_scans, _, _, _ = split()
        chosen = np.random.default_rng(0).choice(len(train_scans), len(train_scans) // 4, replace=False)
        for start in range(0, len(chosen), 32):
            yield {"image": self.preprocess(map(png, train_scans[chosen[start : start + 32]]))}

    def requests(self):
        scan = png(split()[1][0])
        height, width = self.transform.size
        # The larger one is decoded at a reduced scale.
        bodies = [scan, jpeg(scan, (200, 150)), jpeg(scan, (12 * width, 9 * height))]
        return [
            Request(body=body, content_type=kind, params=params, tensors={"image": self.preprocess([body])})
            for body, kind in zip(bodies, ("image/png", "image/jpeg", "image/jpeg"), strict=True)
            for params in ({}, {"k": "3"})
        ]

    def heldout(self):
        _, test_scans, _, test_labels = split()
        for scan, label in zip(test_scans, test_labels, strict=True):
            request = Request(body=png(scan), content_type="image/png", params={"k": "1"})
            yield Example(request=request, expected=str(label))

    def score(self, answers, expected):
        best = [next(iter(answer)) for answer in answers]
        return {"accuracy": float(np.mean([b == e for b, e in zip(best, expected, strict=True)]))}
