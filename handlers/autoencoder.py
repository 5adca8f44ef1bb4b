"""Reconstructs a picture, or draws pictures from a seed. Both are PNG.

    curl -T seven.png http://127.0.0.1:8080/predictions/digits_vae > reconstruction.png
    curl -F data=@seven.png -F side_by_side=1 http://127.0.0.1:8080/predictions/digits_vae > both.png
    curl --json '{"seed": 7, "n": 16}' http://127.0.0.1:8080/predictions/digits_vae > sheet.png

A reconstruction is made of the encoder's mean, without noise, so that the same picture gives the same
answer. With `side_by_side=1` the picture as the model saw it stands left of it. Samples are made of
standard normal numbers, the model's prior. A seed always gives the same samples. They stand row by row
in ceil(sqrt(n)) columns, with a narrow grey gap between them.

The model has two graphs. `encoder` turns one image [batch, 1 or 3, height, width] into outputs whose
first is the mean [batch, z]. `decoder` turns one [batch, z] into one image, with the same bounds of the
batch.

Options (the recipe's `handler_options`): `image`, an `ImageTransform`; `range`, the decoder's black and
white ([0, 1]); `enlarge`, the side of the square that each of the model's pixels becomes (1).
"""

import numpy as np

import torchport_runtime as runtime
from torchport_runtime import pictures


class Autoencoder(runtime.Handler):
    """Sends pictures to the encoder, and requests for samples to the decoder."""

    def setup(self) -> None:
        self.transform = runtime.ImageTransform.from_json(self.options["image"])
        self.low, self.high = (float(value) for value in self.options.get("range", (0, 1)))
        self.enlarge = int(self.options.get("enlarge", 1))
        if self.high <= self.low or self.enlarge < 1:
            raise ValueError("options: a range [low, high] and enlarge of at least 1 are expected")
        if set(self.signatures) != {"encoder", "decoder"}:
            raise ValueError(f"graphs {sorted(self.signatures)}: an encoder and a decoder are expected")
        (self.image,) = self.signatures["encoder"].inputs
        self.mean = next(iter(self.signatures["encoder"].outputs))
        ((self.latent, spec),) = self.signatures["decoder"].inputs.items()
        self.latent_shape = tuple(int(size) for size in spec.shape[1:])

    def decode(self, request: runtime.InferenceRequest) -> dict[str, np.ndarray]:
        if not pictures.has_body(request) and not {"seed", "n"} & set(request.fields):
            raise runtime.BadRequest(
                'the request is empty: send a picture (curl -T FILE), or JSON such as {"seed": 7, "n": 16}'
            )
        if pictures.has_json_object(request) or not pictures.has_body(request):
            request.graph = "decoder"
            wanted = pictures.sampling(request)
            return {self.latent: pictures.noise(wanted["seed"], wanted["n"], self.latent_shape)}
        request.graph = "encoder"
        request.refuse_unknown_fields(["side_by_side"])
        self._side_by_side(request)  # A wrong one must fail here, alone, before the model has run for it.
        image = self.transform.decode(request.content)
        return {self.image: self.transform(image)[None]}

    def infer(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if graph == "decoder":
            return {"image": self._decoded(inputs[self.latent])}
        latent = self.backends["encoder"].run(inputs)[self.mean]
        return {"image": self._decoded(latent), "seen": inputs[self.image]}

    def encode(self, request: runtime.InferenceRequest, outputs: dict[str, np.ndarray]) -> runtime.Answer:
        pixels = pictures.to_pixels(outputs["image"], self.low, self.high)
        if request.graph == "encoder" and self._side_by_side(request):
            mean, std = (np.reshape(v, (-1, 1, 1)) for v in (self.transform.mean, self.transform.std))
            seen = pictures.to_pixels(outputs["seen"] * std + mean)
            pixels = np.concatenate([seen, pixels])
        return runtime.Answer(pictures.png(pictures.sheet(pixels, self.enlarge)), "image/png")

    def _decoded(self, latent: np.ndarray) -> np.ndarray:
        (image,) = self.backends["decoder"].run({self.latent: latent}).values()
        return image

    def _side_by_side(self, request: runtime.InferenceRequest) -> bool:
        return bool(request.param("side_by_side", 0, low=0, high=1))
