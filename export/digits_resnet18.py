"""ResNet-18 on real handwriting: preprocess, define, train, evaluate, the whole way.

    torchport ship export/digits_resnet18.py

The data are the 1,797 digits that scikit-learn ships (UCI "Optical Recognition of Handwritten
Digits"), 8 x 8 pixels in 17 grey levels. A fifth is held out, the same fifth for every seed.
"""

import io

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torchvision.models import resnet18

from torchport import Example, ImageTransform, Recipe, Request, TensorSpec
from torchport_runtime import decode_image

SIZE, EPOCHS, BATCH_SIZE, LEARNING_RATE = 64, 6, 32, 0.05

transform = ImageTransform(size=(SIZE, SIZE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def png(digit: np.ndarray) -> bytes:
    """One scan, float [8, 8] of 0 to 16, as the file that a client would send."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(digit * 255 / 16).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def split() -> tuple[list[bytes], list[bytes], np.ndarray, np.ndarray]:
    """Training and held-out images as PNG files, and their labels, int64."""
    digits = load_digits()
    files = [png(image) for image in digits.images]
    train_files, test_files, train_labels, test_labels = train_test_split(
        files, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    return train_files, test_files, train_labels.astype(np.int64), test_labels.astype(np.int64)


def preprocess(files: list[bytes]) -> np.ndarray:
    """float32 [n, 3, 64, 64], by the code that the handler runs on a request."""
    return np.stack([transform(decode_image(file)) for file in files])


class DigitsResNet18(Recipe):
    """Handwritten digits, 0 to 9, by ResNet-18."""

    name, version, handler = "digits_resnet18", "1.0", "image_classifier"
    inputs = {"image": TensorSpec("float32", ("batch", 3, SIZE, SIZE))}
    outputs = {"logits": TensorSpec("float32", ("batch", 10))}
    dims = {"batch": (1, 32)}
    handler_options = {"image": transform.to_json(), "labels": list("0123456789"), "top_k": 5}

    def build(self):
        return resnet18(num_classes=10)

    def train(self, model, run):
        train_files, test_files, train_labels, test_labels = split()
        images = preprocess(train_files)
        run.fingerprint(images, train_labels)
        x, y = torch.from_numpy(images), torch.from_numpy(train_labels)
        steps = len(x) // BATCH_SIZE
        loss_function = nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(
            model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * steps)
        state = {"model": model, "optimizer": optimizer, "schedule": schedule}
        for epoch in range(run.restore(**state), EPOCHS):
            model.train()
            order = torch.randperm(len(x))
            batches = order[: steps * BATCH_SIZE].split(BATCH_SIZE)
            for batch in run.progress(batches, f"epoch {epoch + 1} of {EPOCHS}", steps):
                optimizer.zero_grad()
                loss = loss_function(model(x[batch].to(run.device)), y[batch].to(run.device))
                loss.backward()
                optimizer.step()
                schedule.step()
            run.checkpoint(epoch + 1, **state)
        return {
            "accuracy": accuracy(model, preprocess(test_files), test_labels, run.device),
            "train_accuracy": accuracy(model, images, train_labels, run.device),
        }

    def samples(self):
        _, test_files, _, _ = split()
        images = preprocess(test_files[:64])
        yield {"image": images[:32]}
        yield {"image": images[32:]}

    def requests(self):
        _, test_files, _, _ = split()
        digit = Image.open(io.BytesIO(test_files[0]))
        jpeg = io.BytesIO()
        digit.resize((200, 150)).convert("RGB").save(jpeg, "JPEG", quality=95)
        bodies = {"image/png": test_files[0], "image/jpeg": jpeg.getvalue()}
        return [
            Request(body=body, content_type=kind, params=params, tensors={"image": preprocess([body])})
            for kind, body in bodies.items()
            for params in ({}, {"k": "3"})
        ]

    def heldout(self):
        _, test_files, _, test_labels = split()
        for file, label in zip(test_files, test_labels, strict=True):
            request = Request(body=file, content_type="image/png", params={"k": "1"})
            yield Example(request=request, expected=str(label))

    def score(self, answers, expected):
        best = [next(iter(answer)) for answer in answers]
        return {"accuracy": float(np.mean([b == e for b, e in zip(best, expected, strict=True)]))}


def accuracy(model: nn.Module, images: np.ndarray, labels: np.ndarray, device: str) -> float:
    """Fraction of images whose greatest logit is the label's."""
    model.eval()
    with torch.no_grad():
        batches = torch.from_numpy(images).split(64)
        guesses = torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in batches])
    return float((guesses.numpy() == labels).mean())
