"""What `bench.fast_paths` measures: a network small enough that what surrounds its kernels counts too."""

import numpy as np
from torch import nn

from torchport import Recipe, Request, TensorSpec


def block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)
    )


class SmallConvolutions(Recipe):
    """Three convolutions with batch norm on 3 x 64 x 64"""

    name, version, handler = "small_convolutions", "1.0", "tensor"
    inputs = {"image": TensorSpec("float32", ("batch", 3, 64, 64))}
    outputs = {"logits": TensorSpec("float32", ("batch", 10))}
    dims = {"batch": (1, 8)}
    backends = ("onnxruntime", "torchscript", "pt2", "aotinductor")

    def configure(self, *, half: bool = False) -> None:
        if half:
            self.precisions = ("float32", "float16", "bfloat16")
            self.optional_precisions = ("float16", "bfloat16")

    def build(self) -> nn.Module:
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
        return nn.Sequential(block(3, 32), block(32, 64), block(64, 128), head)

    def samples(self):
        yield {"image": np.random.default_rng(0).standard_normal((8, 3, 64, 64)).astype(np.float32)}

    def requests(self):
        image = np.zeros((1, 3, 64, 64), np.float32)
        return [Request(json={"image": image.tolist()}, tensors={"image": image})]
