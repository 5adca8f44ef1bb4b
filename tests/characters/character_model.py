"""A small text generator: one GRU cell that predicts the next character of a nursery rhyme.

    torchport ship tests/characters/character_model.py
    curl -N --json '{"prompt": "twinkle", "length": 60}' http://127.0.0.1:8080/predictions/characters

The graph is one step of it, so that a worker steps all of its live requests together. It shows how answers
are streamed; text of use comes of a large model, and that of an LLM engine.
"""

import numpy as np
import torch
from torch import nn

from torchport import Recipe, Request, Serving, TensorSpec

RHYME = """twinkle, twinkle, little star,
how i wonder what you are!
up above the world so high,
like a diamond in the sky.
"""
LETTERS = "".join(sorted(set(RHYME)))
HIDDEN, STEPS, LEARNING_RATE = 64, 120, 0.02


class Step(nn.Module):
    """One step: character int64 [batch], hidden [batch, 64] to logits [batch, letters], new hidden."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), HIDDEN)
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)
        self.output = nn.Linear(HIDDEN, len(LETTERS))

    def forward(self, character, hidden):
        hidden = self.cell(self.embedding(character), hidden)
        return self.output(hidden), hidden


def tokens(text):
    """Positions of the characters in `LETTERS`, int64 [length]."""
    return np.array([LETTERS.index(letter) for letter in text], np.int64)


class Characters(Recipe):
    """Continues a text, character by character."""

    name, version, handler = "characters", "1.0", "character_generator"
    inputs = {
        "character": TensorSpec("int64", ("batch",), low=0, high=len(LETTERS) - 1),
        "hidden": TensorSpec("float32", ("batch", HIDDEN), low=-1, high=1),
    }
    outputs = {
        "logits": TensorSpec("float32", ("batch", len(LETTERS))),
        "new_hidden": TensorSpec("float32", ("batch", HIDDEN)),
    }
    dims = {"batch": (1, 64)}
    handler_options = {"letters": LETTERS}
    serving = Serving(batch_size=64, workers=1)

    def build(self):
        return Step()

    def train(self, model, run):
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        text = torch.from_numpy(tokens(RHYME + RHYME[0]))
        loss = torch.zeros(())
        for _ in run.progress(range(STEPS)):
            hidden, losses = torch.zeros(1, HIDDEN), []
            for position in range(len(text) - 1):
                logits, hidden = model(text[position : position + 1], hidden)
                losses.append(nn.functional.cross_entropy(logits, text[position + 1 : position + 2]))
            loss = torch.stack(losses).mean()
            optimizer.zero_grad(), loss.backward(), optimizer.step()
        return {"loss": loss.item()}

    def samples(self):
        generator = np.random.default_rng(0)
        character = tokens(RHYME)[:32]
        hidden = generator.uniform(-1, 1, (len(character), HIDDEN)).astype(np.float32)
        yield {"character": character, "hidden": hidden}

    def requests(self):
        first = {"character": tokens("t"), "hidden": np.zeros((1, HIDDEN), np.float32)}
        return [Request(json={"prompt": "twinkle", "length": 20}, tensors=first)]
