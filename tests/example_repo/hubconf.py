"""A torch.hub repository of the kind that people have: models that nobody wrote for torchport.

    torchport ship hub --repo tests/example_repo --entry pair_encoder --source local \
        --input left:int64:batch,time:0..99 --input right:int64:batch,time:0..99 --dim time:1,32
"""

dependencies = ["torch"]

import torch  # noqa: E402
from torch import nn  # noqa: E402


class PairEncoder(nn.Module):
    """Two sequences of token ids, int64 [batch, time], to one vector, float32 [batch, width]."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 32)
        self.read = nn.GRU(32, 48, batch_first=True)
        self.project = nn.Linear(4 * 48, width)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        a, b = (self.read(self.embed(tokens))[0].amax(dim=1) for tokens in (left, right))
        return self.project(torch.cat([a, b, (a - b).abs(), a * b], dim=1))


class Segmenter(nn.Module):
    """Pictures, float32 [batch, 3, height, width], to classes per pixel at half their size, and edges."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU())
        self.classes = nn.Conv2d(32, classes, 1)
        self.edges = nn.Conv2d(16, 1, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.stem(image)
        return {"classes": self.classes(self.down(features)), "edges": self.edges(features).sigmoid()}


def pair_encoder(width: int = 384) -> nn.Module:
    """An encoder of two token sequences."""
    return PairEncoder(vocabulary=100, width=width)


def segmenter(classes: int = 5) -> nn.Module:
    """A fully convolutional network for pictures of any size."""
    return Segmenter(classes)
