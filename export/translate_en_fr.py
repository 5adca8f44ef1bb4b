"""Translates English strings of user interfaces into French.

    torchport ship export/translate_en_fr.py

The model is a recurrent encoder-decoder with attention, in two graphs. The data are the strings of
JupyterLab and its extensions, with their French translations by volunteers (the language pack on PyPI,
BSD licence). A ninth of the strings of 2 to 20 words is held out, the same for every seed. Strings that
differ by case, punctuation, digits or a plural's s alone are never on both sides.

On the 316 held-out strings the translation of the most similar training string has a BLEU of 22.7, a
look-up of phrases 14.1, the English itself 4.9. This model has about 35 (`_ui_translations` has them).

2,600 pairs are few. What helps: placeholders and names go around the model (`ui_strings`). An alignment
of words (IBM model 1, Brown et al., 1993), estimated before the training, teaches the attention where
to look, and gives each step's logits a dictionary (Arthur et al., 2016). Settings were chosen on a
ninth of the training strings.
"""

import copy
import json
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from _translator_network import (
    BEGIN,
    EMBEDDING,
    END,
    HIDDEN,
    SPECIAL,
    VOCABULARY,
    DecoderStep,
    Encoder,
    Translator,
    align,
)
from _ui_translations import baselines, bleu, split
from torch import nn

from torchport import Example, Recipe, Request, Signature, TensorSpec
from torchport_runtime.decoding import beam_search
from torchport_runtime.text import TextEncoder, pad, train_bpe
from torchport_runtime.ui_strings import SLOTS, read_pair, source_tokens

BATCH_SIZE, LEARNING_RATE, AVERAGING, LONGEST = 32, 4e-3, 0.995, 45
MAX_SOURCE, MAX_ROWS, BEAM = 64, 32, 4
SEARCH = {
    "begin": BEGIN,
    "end": END,
    "forbidden": [0, 1, BEGIN],
    "width": BEAM,
    "length_penalty": 0.6,
    "limit": 64,
}


@lru_cache(maxsize=1)
def tokenizer(cache: Path) -> tuple[str, TextEncoder]:
    """The byte-pair encoding of both languages, as JSON and ready to use."""
    texts = [text for pair in split(cache)[0] for text in read_pair(*pair)]
    bpe = train_bpe([*texts, SLOTS], VOCABULARY, SPECIAL)
    return bpe, TextEncoder.from_json(bpe, MAX_SOURCE - 1)


class TranslateEnFr(Recipe):
    """English interface strings into French, by GRUs with attention."""

    name, version, handler = "translate_en_fr", "1.0", "translator"
    handler_options = {
        "begin": BEGIN,
        "end": END,
        "never": SEARCH["forbidden"],
        "beam": BEAM,
        "length_penalty": SEARCH["length_penalty"],
        "max_target": SEARCH["limit"],
    }
    goals = {"bleu": ">= 32", "bleu_over_lookup": ">= 1.35"}
    requirements = ("tokenizers>=0.20",)

    def configure(self, *, epochs: int = 30):
        self.epochs = epochs

    def build(self):
        return Translator()

    def graphs(self, model):
        return {"encoder": Encoder(model), "decoder": DecoderStep(model)}

    def signatures(self):
        def ids(*shape: str) -> TensorSpec:
            return TensorSpec("int64", shape, low=0, high=VOCABULARY - 1)

        state = TensorSpec("float32", ("batch", 2 * HIDDEN), low=-1, high=1)
        memory = TensorSpec("float32", ("batch", "source", EMBEDDING + 2 * HIDDEN))
        bounded = TensorSpec("float32", memory.shape, low=-4, high=4)
        source = (1, MAX_SOURCE)
        return {
            "encoder": Signature(
                inputs={"tokens": ids("batch", "source")},
                outputs={"memory": memory, "state": state},
                dims={"batch": (1, MAX_ROWS), "source": source},
            ),
            "decoder": Signature(
                inputs={
                    "previous": ids("batch"),
                    "state": state,
                    "tokens": ids("batch", "source"),
                    "memory": bounded,
                },
                outputs={"logits": TensorSpec("float32", ("batch", VOCABULARY)), "new_state": state},
                dims={"batch": (1, MAX_ROWS * BEAM), "source": source},
            ),
        }

    def train(self, model, run):
        training, held = split(run.cache)
        bpe, encoder = tokenizer(run.cache)
        (run.assets / "tokenizer.json").write_text(bpe, encoding="utf-8")
        run.fingerprint(np.frombuffer(json.dumps(training).encode(), np.uint8))
        with torch.no_grad():
            model.dictionary.copy_(align([example(encoder, pair) for pair in training]))
        batches = -(-len(training) // BATCH_SIZE)
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0)
        total = self.epochs * batches
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 200, 1, max(0.02, (total - step) / (0.6 * total)))
        )
        average = copy.deepcopy(model)
        state = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
        step = 0
        for epoch in range(run.restore(**state), self.epochs):
            model.train()
            examples = [example(encoder, pair, shuffled=True) for pair in training]
            examples = [e for e in examples if max(map(len, e)) <= LONGEST]
            random.shuffle(examples)
            examples.sort(key=lambda e: len(e[1]) // 2)
            groups = [examples[i : i + BATCH_SIZE] for i in range(0, len(examples), BATCH_SIZE)]
            random.shuffle(groups)
            for group in run.progress(groups, f"epoch {epoch + 1} of {self.epochs}", len(groups)):
                source, target = (
                    torch.from_numpy(pad(rows)[0]).to(run.device) for rows in zip(*group, strict=True)
                )
                optimizer.zero_grad()
                model.loss(source, target).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                step = schedule.last_epoch
                # The answer is the average of the last few hundred steps.
                decay = min(AVERAGING, (1 + step) / (10 + step))
                with torch.no_grad():
                    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                        mean.lerp_(weight, 1 - decay)
            run.checkpoint(epoch + 1, **state)
        model.load_state_dict(average.state_dict())
        model.eval()
        translations = translate(model, encoder, [english for english, _ in held])
        metrics = self.score([{"translation": text} for text in translations], [french for _, french in held])
        return metrics | {"train_strings": float(len(training)), "heldout_strings": float(len(held))}

    def graph_samples(self, graph):
        _, held = split(self.cache)
        _, encoder = tokenizer(self.cache)
        for rows in (held[:16], held[16:17], held[20:52]):
            tokens, _ = pad([example(encoder, pair)[0] for pair in rows])
            if graph == "encoder":
                yield {"tokens": tokens}
                continue
            # What an encoder makes of the tokens depends on weights, which samples do not have: numbers
            # drawn in the range of such memories and states stand in, beside real tokens.
            draw = np.random.default_rng(len(rows))
            n, length = tokens.shape
            yield {
                "previous": tokens[:, 0],
                "state": draw.uniform(-1, 1, (n, 2 * HIDDEN)).astype(np.float32),
                "tokens": tokens,
                "memory": draw.normal(0, 0.5, (n, length, EMBEDDING + 2 * HIDDEN))
                .clip(-4, 4)
                .astype(np.float32),
            }

    def describe_input(self, graph, row, assets):
        return tokenizer(self.cache)[1].decode(row["tokens"])

    def requests(self):
        _, held = split(self.cache)
        _, encoder = tokenizer(self.cache)
        texts = [english for english, _ in held[:3]]

        def tensors(texts: list[str]) -> dict[str, np.ndarray]:
            return {"tokens": pad([source_tokens(encoder, text, END)[1] for text in texts])[0]}

        plain = "text/plain; charset=utf-8"
        return [
            Request(body=texts[0].encode(), content_type=plain, tensors=tensors(texts[:1])),
            Request(json={"text": texts[1]}, tensors=tensors(texts[1:2])),
            Request(json={"instances": texts}, tensors=tensors(texts)),
        ]

    def heldout(self):
        for english, french in split(self.cache)[1]:
            yield Example(request=Request(json={"text": english}), expected=french)

    def score(self, answers, expected):
        from sacrebleu import corpus_chrf

        translations = [answer["translation"] for answer in answers]
        others = baselines(self.cache)
        reached = bleu(translations, expected)
        return {
            "bleu": reached,
            "bleu_over_lookup": reached / max(others["phrase_bleu"], others["nearest_bleu"]),
            "chrf": float(corpus_chrf(translations, [expected]).score),
            **others,
        }


def example(
    encoder: TextEncoder, pair: tuple[str, str], *, shuffled: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A pair as tokens: source with END, target from BEGIN to END.

    `shuffled` assigns placeholders' slots at random.
    """
    english, french = read_pair(*pair, random.sample(SLOTS, len(SLOTS)) if shuffled else SLOTS)
    source, target = encoder.encode(english)[0], encoder.encode(french)[0]
    return np.append(source, END), np.concatenate([[BEGIN], target, [END]])


@torch.no_grad()
def translate(model: Translator, encoder: TextEncoder, texts: list[str]) -> list[str]:
    """Translations by the handler's own search."""
    decoder, device, out = DecoderStep(model), model.bias.device, []
    for start in range(0, len(texts), MAX_ROWS):
        read = [source_tokens(encoder, text, END) for text in texts[start : start + MAX_ROWS]]
        tokens = torch.from_numpy(pad([tokens for _, tokens, _ in read])[0]).to(device)
        memory, state = model.encode(tokens)
        carried = tokens.repeat_interleave(BEAM, 0), memory.repeat_interleave(BEAM, 0)

        def step(previous, states, carried=carried):
            given = (torch.from_numpy(array).to(device) for array in (previous, states["state"]))
            logits, state = decoder(*given, *carried)
            return logits.cpu().numpy(), {"state": state.cpu().numpy()}

        rows, _ = beam_search(step, {"state": state.cpu().numpy()}, **SEARCH)
        out += [
            string.restore(encoder.decode(token for token in row if token != END))
            for (string, _, _), row in zip(read, rows, strict=True)
        ]
    return out
