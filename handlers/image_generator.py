"""Draws pictures from noise: a sheet of samples as PNG.

    curl --json '{"seed": 7, "n": 16}' http://127.0.0.1:8080/predictions/digits_gan > sheet.png
    curl --json '{"seed": 7, "n": 4, "digit": 3}' http://127.0.0.1:8080/predictions/digits_gan > threes.png
    curl -F seed=7 -F n=1 http://127.0.0.1:8080/predictions/digits_gan > one.png

`seed` chooses the noise, `n` the number of pictures; `{}` is seed 0 and 16 pictures. A seed always
gives the same pictures, and the first four of sixteen are those of n = 4. They stand row by row in
ceil(sqrt(n)) columns, with a narrow grey gap between them.

The graph has one float input [batch, ...], standard normal noise, and gives pictures [batch, 1 or 3,
height, width]. A graph that is told what to draw has a second input, int64 [batch] with `low` and
`high`. Requests may give its value by its name (`digit`); without it each picture's value is drawn from
the seed.

Options (the recipe's `handler_options`): `range`, the model's black and white ([0, 1]); `enlarge`, the
side of the square that each of the model's pixels becomes (1).
"""

import numpy as np

import torchport_runtime as runtime
from torchport_runtime import pictures

MAX_SHEET_BYTES = 6_000_000
"""Maximum bytes of a sheet's pixels. `n` is bounded by it for larger pictures: TorchServe answers with 6.5
MB at most."""


class ImageGenerator(runtime.Handler):
    """Draws the noise, runs the graph, puts its pictures on a sheet."""

    def setup(self) -> None:
        self.low, self.high = (float(value) for value in self.options.get("range", (0, 1)))
        self.enlarge = int(self.options.get("enlarge", 1))
        if self.high <= self.low or self.enlarge < 1:
            raise ValueError("options: a range [low, high] and enlarge of at least 1 are expected")
        floats = {n: s for n, s in self.signature.inputs.items() if s.dtype.startswith("float")}
        self.choices = {n: s for n, s in self.signature.inputs.items() if n not in floats}
        if len(floats) != 1 or len(self.choices) > 1:
            raise ValueError("the graph is to have one float input, noise, and at most one of whole numbers")
        ((self.noise, spec),) = floats.items()
        self.noise_shape = tuple(int(size) for size in spec.shape[1:])
        for name, spec in self.choices.items():
            if spec.dtype != "int64" or len(spec.shape) != 1 or spec.low is None or spec.high is None:
                raise ValueError(f"input {name!r} is {spec}: int64 [batch] with low and high is expected")
        self.bounds = {name: (int(spec.low), int(spec.high)) for name, spec in self.choices.items()}
        (image,) = self.signature.outputs.values()
        sizes = [size for size in image.shape[1:] if isinstance(size, int)]
        picture = int(np.prod(sizes)) * self.enlarge**2
        self.most = max(1, min(pictures.MAX_N, MAX_SHEET_BYTES // picture))

    def decode(self, request: runtime.InferenceRequest) -> dict[str, np.ndarray]:
        wanted = pictures.sampling(request, most=self.most, also=self.bounds)
        seed, n = wanted["seed"], wanted["n"]
        tensors = {self.noise: pictures.noise(seed, n, self.noise_shape)}
        for name, (low, high) in self.bounds.items():
            given = wanted.get(name)
            drawn = pictures.choices(seed, n, low, high)
            tensors[name] = drawn if given is None else np.full(n, given, np.int64)
        return {name: tensors[name] for name in self.signature.inputs}

    def encode(self, request: runtime.InferenceRequest, outputs: dict[str, np.ndarray]) -> runtime.Answer:
        (images,) = outputs.values()
        pixels = pictures.to_pixels(images, self.low, self.high)
        return runtime.Answer(pictures.png(pictures.sheet(pixels, self.enlarge)), "image/png")
