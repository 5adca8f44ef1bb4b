"""Translates English strings.

    curl --json '{"text": "Open the file %1"}' http://127.0.0.1:8080/predictions/translate_en_fr
    {"translation": "Ouvrir le fichier %1", "truncated": false}
    curl --json '["Close all tabs", "Save"]' http://127.0.0.1:8080/predictions/translate_en_fr
    [{"translation": "Fermer tous les onglets", ...}, {"translation": "Sauvegarder", "truncated": false}]
    curl -T string.txt http://127.0.0.1:8080/predictions/translate_en_fr

`truncated` is true if the string is longer than the model takes, or the translation longer than it
gives. The answer is then of the string's beginning, or lacks its end. A string is one line: line ends
become spaces. Placeholders (%1, {name}), names, code and words in other scripts are carried over as
they are.

The model has two graphs. `encoder` turns tokens int64 [batch, source], padded with 0, into a memory of
them and a first `state`. `decoder` is one step: it turns `previous` int64 [batch], `state`, `tokens`
and the encoder's other outputs into `logits` [batch, vocabulary] and `new_state`. The asset is
`tokenizer.json`.

Options (the recipe's `handler_options`): `begin` and `end`, the ids before the first and after the last
token; `never`, ids that are never given; `beam`, hypotheses per string (4); `length_penalty` (0.6);
`max_target`, maximum tokens of a translation (64).
"""

import numpy as np

import torchport_runtime as runtime
from torchport_runtime.decoding import beam_search
from torchport_runtime.text import TextEncoder, decode_texts, pad
from torchport_runtime.ui_strings import UiString, source_tokens

MAX_TEXTS = 16
"""Maximum texts of one request: long ones take half a second each, and a server gives a whole batch one
minute."""


class Translator(runtime.Handler):
    """Encodes the texts, then decodes all of a batch's next tokens at once."""

    padding = {"tokens": 0}

    def setup(self) -> None:
        if set(self.signatures) != {"encoder", "decoder"}:
            raise ValueError(f"graphs {sorted(self.signatures)}: an encoder and a decoder are expected")
        self.begin, self.end = int(self.options["begin"]), int(self.options["end"])
        self.never = [int(token) for token in self.options.get("never", ())]
        self.beam = int(self.options.get("beam", 4))
        self.length_penalty = float(self.options.get("length_penalty", 0.6))
        self.max_target = int(self.options.get("max_target", 64))
        encoder, decoder = self.signatures["encoder"], self.signatures["decoder"]
        rows = {name: s.dims[s.batch_dim or ""][1] for name, s in self.signatures.items()}
        if rows["encoder"] * self.beam > rows["decoder"]:
            raise ValueError(
                f"{rows['encoder']} rows of the encoder at {self.beam} hypotheses each are more than the "
                f"decoder's {rows['decoder']} rows: make its batch greater"
            )
        _, source = encoder.inputs["tokens"].shape
        self.encoder = TextEncoder(self.assets / "tokenizer.json", encoder.dims[str(source)][1] - 1)
        self.carried = [name for name in decoder.inputs if name not in ("previous", "state")]

    def decode(self, request: runtime.InferenceRequest) -> dict[str, np.ndarray]:
        request.graph = "encoder"
        request.refuse_unknown_fields([])
        return {"tokens": pad([tokens for _, tokens, _ in self._read(request)])[0]}

    def infer(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        encoded = {**inputs, **self.backends[graph].run(inputs)}
        memory = {name: np.repeat(encoded[name], self.beam, axis=0) for name in self.carried}

        def step(
            previous: np.ndarray, states: dict[str, np.ndarray]
        ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            outputs = self.backends["decoder"].run({"previous": previous, **states, **memory})
            return outputs["logits"], {"state": outputs["new_state"]}

        tokens, ended = beam_search(
            step,
            {"state": encoded["state"]},
            begin=self.begin,
            end=self.end,
            forbidden=self.never,
            width=self.beam,
            length_penalty=self.length_penalty,
            limit=self.max_target,
        )
        return {"translation": tokens, "ended": ended}

    def encode(self, request: runtime.InferenceRequest, outputs: dict[str, np.ndarray]) -> object:
        answers = [
            {"translation": self._written(string, tokens), "truncated": bool(cut or not ended)}
            for (string, _, cut), tokens, ended in zip(
                self._read(request), outputs["translation"], outputs["ended"], strict=True
            )
        ]
        return answers if request.batched else answers[0]

    def _read(self, request: runtime.InferenceRequest) -> list[tuple[UiString, np.ndarray, bool]]:
        return [
            source_tokens(self.encoder, text, self.end)
            for text in decode_texts(request, limit_texts=MAX_TEXTS)
        ]

    def _written(self, string: UiString, tokens: np.ndarray) -> str:
        return string.restore(self.encoder.decode(token for token in tokens if token != self.end))
