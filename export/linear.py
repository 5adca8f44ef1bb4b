"""The first lesson of every PyTorch course: fit a line.

torchport ship export/linear.py
"""

import numpy as np
import torch
from torch import nn

from torchport import Example, Recipe, Request, Serving, TensorSpec

POINTS, EPOCHS, LEARNING_RATE = 100, 1000, 0.01


def points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw x ~ N(0, 1) and y = 3x + 2 + N(0, 1), float32 [100, 1] each."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((POINTS, 1))
    y = 3 * x + 2 + generator.standard_normal((POINTS, 1))
    return x.astype(np.float32), y.astype(np.float32)


class Linear(Recipe):
    """y = 3x + 2 with noise, by gradient descent on the mean squared error."""

    name, version, handler = "linear", "1.0", "regressor"
    inputs = {"x": TensorSpec("float32", ("batch", 1))}
    outputs = {"y": TensorSpec("float32", ("batch", 1))}
    serving = Serving(batch_size=32)

    heldout_seed = 10**6  # Far from any seed that one trains with.

    def build(self):
        return nn.Linear(1, 1)

    def train(self, model, run):
        x_train, y_train = points(run.seed)
        run.fingerprint(x_train, y_train)
        x, y = torch.from_numpy(x_train).to(run.device), torch.from_numpy(y_train).to(run.device)
        loss_function = nn.MSELoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        start = run.restore(model=model, optimizer=optimizer)
        for epoch in run.progress(range(start, EPOCHS), "fitting a line", EPOCHS - start):
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
            run.checkpoint(epoch + 1, model=model, optimizer=optimizer)
        x_test, y_test = (torch.from_numpy(a).to(run.device) for a in points(self.heldout_seed))
        with torch.no_grad():
            return {
                "w": model.weight.item(),
                "b": model.bias.item(),
                "train_mse": loss_function(model(x), y).item(),
                "heldout_mse": loss_function(model(x_test), y_test).item(),
            }

    def samples(self):
        x, _ = points(self.heldout_seed)
        yield {"x": x[:64]}
        yield {"x": x[64:]}

    def requests(self):
        one = np.array([[4.0]], np.float32)
        two = np.array([[4.0], [5.0]], np.float32)
        return [
            Request(json=[4.0], tensors={"x": one}),
            Request(json={"x": [4.0]}, tensors={"x": one}),
            Request(json={"instances": [[4.0], [5.0]]}, tensors={"x": two}),
        ]

    def heldout(self):
        for x, y in zip(*points(self.heldout_seed), strict=True):
            yield Example(request=Request(json=x.tolist()), expected=y.tolist())

    def score(self, answers, expected):
        return {"heldout_mse": float(np.mean((np.array(answers) - np.array(expected)) ** 2))}
