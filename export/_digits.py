"""Handwritten digits that several recipes learn from.

They are scikit-learn's 1,797 scans, 8 x 8 pixels in 17 grey levels (UCI "Optical Recognition of
Handwritten Digits"). A fifth is held out, the same for every seed.
"""

import io

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and held-out scans, float64 [n, 8, 8] of 0 to 16.

    Their labels are int64 [n].
    """
    digits = load_digits()
    train, test, train_labels, test_labels = train_test_split(
        digits.images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    return train, test, train_labels.astype(np.int64), test_labels.astype(np.int64)


def png(digit: np.ndarray) -> bytes:
    """One scan as the PNG file that a client would send."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(digit * 255 / 16).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def accuracy(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray, device: str) -> float:
    """Fraction of images whose largest logit is the label's.

    The model is left in evaluation mode.
    """
    model.eval()
    with torch.no_grad():
        batches = torch.from_numpy(images).split(64)
        guesses = torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in batches])
    return float((guesses.numpy() == labels).mean())
