"""Classifies texts: the label with its probability, and its explanation by tokens.

    curl --data-binary 'A gem.' -H 'Content-Type: text/plain' http://127.0.0.1:8080/predictions/sentiment
    {"label": "positive", "probability": 0.98, "truncated": false}
    curl --json '["A gem.", "A bore."]' http://127.0.0.1:8080/predictions/sentiment
    [{"label": "positive", ...}, {"label": "negative", ...}]
    curl --json '{"text": "A gem."}' http://127.0.0.1:8080/explanations/sentiment
    {"label": "positive", "probability": 0.98, "tokens": [["A", 0.02], ["gem", 3.1], ...], "delta": 0.01}

The form's field `label` asks for the explanation of another label than the likeliest. A token's number
is how much it moved the label's logit, by integrated gradients over its vector. `delta` is the part of
the logit's change that their sum misses. An explanation needs the TorchScript backend.

The model has two graphs, so that gradients can be taken of vectors. `embedding` turns tokens [batch,
time] into vectors [batch, time, width]. `main` turns vectors and mask [batch, time] into logits [batch,
classes]. The asset is `tokenizer.json`. Options: `labels`, one name for each class; `max_tokens`, the
length at which longer texts are cut (the maximum of `time`).
"""

from typing import Any

import numpy as np

import torchport_runtime as runtime
from torchport_runtime.text import TextEncoder, decode_texts, pad


class TextClassifier(runtime.Handler):
    """Serves the graphs `embedding` and `main`; token id 0 is padding."""

    padding = {"tokens": 0}

    def setup(self) -> None:
        longest = self.signatures["embedding"].dims["time"][1]
        max_tokens = min(int(self.options.get("max_tokens", longest)), longest)
        self.encoder = TextEncoder(self.assets / "tokenizer.json", max_tokens)
        self.labels = [str(label) for label in self.options["labels"]]

    def decode(self, request: runtime.InferenceRequest) -> dict[str, np.ndarray]:
        request.graph = "embedding"
        request.refuse_unknown_fields(["label"] if request.wants_explanation else [])
        tokens, _ = pad([self.encoder.encode(text)[0] for text in decode_texts(request)])
        return {"tokens": tokens}

    def infer(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.backends["main"].run(self.vectors(inputs["tokens"]))

    def encode(self, request: runtime.InferenceRequest, outputs: dict[str, np.ndarray]) -> Any:
        texts = decode_texts(request)
        answers = [
            self.verdict(logits) | {"truncated": self.encoder.encode(text)[1]}
            for text, logits in zip(texts, outputs["logits"], strict=True)
        ]
        return answers if request.batched else answers[0]

    def explain(self, request: runtime.InferenceRequest, tensors: dict[str, np.ndarray]) -> Any:
        texts = decode_texts(request)
        if len(texts) > 1:
            raise runtime.BadRequest(f"{len(texts)} texts: one is explained at a time")
        inputs = self.vectors(tensors["tokens"])
        logits = self.backends["main"].run(inputs)["logits"][0]
        label = request.text_param("label", self.labels[int(logits.argmax())])
        if label not in self.labels:
            raise runtime.BadRequest(f"label={label[:40]!r}: one of {', '.join(self.labels)} is expected")
        target = self.labels.index(label)
        attributions, delta = runtime.integrated_gradients(
            self.backends["main"], inputs, name="vectors", output="logits", target=target
        )
        shares = attributions[0].sum(axis=-1).astype(np.float64)
        pieces = self.encoder.pieces(texts[0])
        return self.verdict(logits, target) | {
            "tokens": [[piece, float(share)] for piece, share in zip(pieces, shares, strict=True)],
            "delta": delta,
        }

    def vectors(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of `main`: the tokens' vectors, and the mask of tokens."""
        return self.backends["embedding"].run({"tokens": tokens}) | {"mask": tokens != 0}

    def verdict(self, logits: np.ndarray, target: int | None = None) -> dict[str, Any]:
        """A label and its probability, of logits [classes].

        It is the label at `target`, or the likeliest.
        """
        scores = np.exp(logits.astype(np.float64) - logits.max())
        best = int(logits.argmax()) if target is None else target
        return {"label": self.labels[best], "probability": float(scores[best] / scores.sum())}
