"""A recipe that tells the sign of a picture, and changes to it. INT8 holds it, unless a channel is LOUD."""

SIGNS = """
    import numpy as np
    import torch
    from torch import nn
    from torchport import Example, Recipe, Request, Serving, TensorSpec

    LOUD = 1.0

    def pictures(seed, count):
        draw = np.random.default_rng(seed)
        signs = np.where(np.arange(count) % 2, 1.0, -1.0)
        told = 0.5 * signs[:, None, None] + 0.1 * draw.standard_normal((count, 8, 8))
        noise = draw.uniform(-1, 1, (count, 8, 8))
        return np.stack([told, noise], axis=1).astype(np.float32), signs

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(2, 2, 1, bias=False)
            self.second = nn.Conv2d(2, 4, 3, bias=False)
            self.last = nn.Linear(4, 2)
            with torch.no_grad():
                # The second channel is noise, as loud as it may be, and nobody listens to it.
                self.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, LOUD]])[..., None, None])
                self.second.weight.zero_()[:, 0] = 1 / 9
                self.last.weight.copy_(torch.tensor([[-1.0], [1.0]]).repeat(1, 4))
                self.last.bias.zero_()

        def forward(self, image):
            return self.last(self.second(self.first(image)).mean((2, 3)))

    class Signs(Recipe):
        name, version, handler = "signs", "1.0", "regressor"
        inputs = {"image": TensorSpec("float32", ("batch", 2, 8, 8), low=-1.0, high=1.0)}
        outputs = {"logits": TensorSpec("float32", ("batch", 2))}
        goals = {"accuracy": ">= 0.9"}
        serving = Serving(batch_size=4)

        def build(self):
            return Net()

        def samples(self):
            yield {"image": pictures(0, 16)[0]}

        def requests(self):
            picture = pictures(2, 1)[0]
            return [Request(json=picture[0].tolist(), tensors={"image": picture})]

        def heldout(self):
            for picture, sign in zip(*pictures(1, 24)):
                request = Request(json=picture.tolist(), tensors={"image": picture[None]})
                yield Example(request=request, expected=int(sign > 0))

        def score(self, answers, expected):
            right = np.mean([np.argmax(a) == e for a, e in zip(answers, expected)])
            return {"accuracy": float(right), "error": float(1 - right)}
"""
LOUD = ("LOUD = 1.0", "LOUD = 1000.0")


CALIBRATION = (
    "    def requests",
    """    def calibration(self, graph):
        yield {"image": pictures(5, 200)[0]}

    def requests""",
)
LOWER = ('{"accuracy": ">= 0.9"}', '{"error": "<= 0.1"}')
