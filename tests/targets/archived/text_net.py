"""A classifier of words, with what TorchServe's `text_classifier` wants: `embedding`, and offsets."""

from torch import nn


class TextNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(16, 8)
        self.classify = nn.Linear(8, 3)

    def forward(self, text, offsets):
        return self.classify(self.embedding(text, offsets))
