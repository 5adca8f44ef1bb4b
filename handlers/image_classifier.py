"""Classifies an image: its most likely labels with probabilities, best first.

    curl -T seven.png http://127.0.0.1:8080/predictions/digits_resnet18
    {"7": 0.99, "9": 0.008, "4": 0.001, "3": 0.0004, "8": 0.0001}
    curl -F data=@seven.png -F k=2 http://127.0.0.1:8080/predictions/digits_resnet18
    {"7": 0.99, "9": 0.008}

`k` is a field of a form, because TorchServe shows its handlers no query. An explanation says which
pixels spoke for the label, and which against it, in the model's own size. It has numbers, or is a
drawing with `draw=1`:

    curl -T seven.png http://127.0.0.1:8080/explanations/digits_resnet18
    {"label": "7", "probability": 0.99, "attributions": [[0.0, 0.01, ...], ...], "delta": 0.002}
    curl -F data=@seven.png -F draw=1 -F label=9 http://127.0.0.1:8080/explanations/digits_resnet18 > why.png

Options (the recipe's `handler_options`): `image`, an `ImageTransform`; `labels`, a list of names, or an
asset `labels.txt` with one per line; `top_k`, the number of labels unless the request says another (5).
"""

from typing import Any

import numpy as np

import torchport_runtime as runtime


class ImageClassifier(runtime.Handler):
    """Serves one graph: image [batch, channels, height, width] to logits [batch, classes]."""

    decides = "label"

    def setup(self) -> None:
        self.transform = runtime.ImageTransform.from_json(self.options["image"])
        listed = self.assets / "labels.txt"
        if "labels" in self.options:
            self.labels = [str(label) for label in self.options["labels"]]
        elif listed.is_file():
            self.labels = listed.read_text(encoding="utf-8").splitlines()
        else:
            (logits,) = self.signature.outputs.values()
            self.labels = [str(index) for index in range(int(logits.shape[-1]))]
        self.top_k = min(int(self.options.get("top_k", 5)), len(self.labels))

    def decode(self, request: runtime.InferenceRequest) -> dict[str, np.ndarray]:
        # A wrong k must fail here, alone, before the model has run for it.
        request.refuse_unknown_fields(["draw", "label"] if request.wants_explanation else ["k"])
        request.param("k", self.top_k, low=1, high=len(self.labels))
        (name,) = self.signature.inputs
        image = self.transform.decode(request.content)
        return {name: self.transform(image)[None]}

    def encode(self, request: runtime.InferenceRequest, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        k = request.param("k", self.top_k, low=1, high=len(self.labels))
        probabilities = self.probabilities(outputs)
        best = np.argsort(-probabilities, kind="stable")[:k]
        return {self.labels[index]: float(probabilities[index]) for index in best}

    def explain(self, request: runtime.InferenceRequest, tensors: dict[str, np.ndarray]) -> Any:
        draw = request.param("draw", 0, low=0, high=1)
        probabilities = self.probabilities(self.infer("main", tensors))
        label = request.text_param("label", self.labels[int(probabilities.argmax())])
        if label not in self.labels:
            raise runtime.BadRequest(
                f"label={label[:40]!r}: one of {', '.join(self.labels[:20])} is expected"
            )
        target = self.labels.index(label)
        (name,), (output,) = self.signature.inputs, self.signature.outputs
        attributions, delta = runtime.integrated_gradients(
            self.backends["main"], tensors, name=name, output=output, target=target
        )
        pixels = attributions[0].sum(axis=0)
        if draw:
            return runtime.Answer(runtime.heat_map(pixels), "image/png")
        probability = float(probabilities[target])
        return {"label": label, "probability": probability, "attributions": pixels, "delta": delta}

    @staticmethod
    def probabilities(outputs: dict[str, np.ndarray]) -> np.ndarray:
        """The softmax of one row's logits."""
        (logits,) = outputs.values()
        scores = np.exp(logits[0].astype(np.float64) - logits[0].max())
        return scores / scores.sum()
