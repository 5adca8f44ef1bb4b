"""The models that contenders run, with numpy, Pillow and ONNX Runtime: in every contender the same code.

WORK=picture MODEL=main.onnx python -c "
import work
model = work.opened()
model.answers([model.decode(open('photograph.jpg', 'rb').read())])"        # [{'china': 0.99, ...}]

It knows nothing of this project, because it runs in environments without it. A contender's own module
passes what it gets to `decode`, rows to `answers`, and answers with that as JSON.
"""

import io
import os

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

SIZE = 224
MEAN, STD = (np.array(values, np.float32) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
NAMES = ("china", "flower")
BEST = 5


class Model:
    """A model of one input and one output, on one thread. `json` says whether requests are JSON."""

    json = False

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def decode(self, body):
        """A row of the input, of a request's bytes, or of its value where it is JSON."""
        raise NotImplementedError

    def run(self, rows):
        """The outputs of these rows, as one batch."""
        batch = rows[0][None] if len(rows) == 1 else np.stack(rows)
        return self.session.run(None, {self.input: batch})[0]

    def answers(self, rows):
        """An answer for each row, as JSON has it."""
        return self.run(rows).tolist()


class Linear(Model):
    """`[4.0]` in, `[14.17]` out."""

    json = True

    def decode(self, body):
        return np.array(body, np.float32)


class Tensor(Model):
    """An `.npy` file with one row in, its mean magnitude out."""

    def decode(self, body):
        return np.load(io.BytesIO(body))[0]


class Picture(Model):
    """A JPEG file in, its five likeliest classes out."""

    def decode(self, body):
        image = ImageOps.fit(Image.open(io.BytesIO(body)).convert("RGB"), (SIZE, SIZE), Image.BILINEAR)
        pixels = np.asarray(image, np.float32) / np.float32(255)
        return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1))

    def answers(self, rows):
        return [likeliest(logits) for logits in self.run(rows)]


def likeliest(logits):
    weights = np.exp(logits - logits.max())
    best = np.argsort(weights)[::-1][:BEST]
    return {name_of(index): float(weights[index] / weights.sum()) for index in best}


def name_of(index):
    return NAMES[index] if index < len(NAMES) else f"class {index}"


WORKS = {"linear": Linear, "tensor": Tensor, "picture": Picture}
KIND = WORKS[os.environ.get("WORK", "linear")]
WORKERS = int(os.environ.get("WORKERS", "1"))
BATCH_SIZE = int(os.environ.get("BATCH_SIZE", "1"))
WAIT_MS = int(os.environ.get("WAIT_MS", "1"))


def opened():
    """The model that the environment's variables name."""
    return KIND(os.environ["MODEL"])
