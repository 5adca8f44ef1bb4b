"""A classifier of pictures of 28 by 28 pixels, an archive's `modelFile`: one class."""

import torch
from torch import nn


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 4, kernel_size=3, stride=2)
        self.classify = nn.Linear(4 * 13 * 13, 10)

    def forward(self, pictures):
        return self.classify(torch.relu(self.features(pictures)).flatten(1))
