"""Classifies a film review's sentence as praise or blame, and explains it.

    torchport ship sentiment
    curl --json '"Tense, terrific, early work."' http://127.0.0.1:8080/predictions/sentiment

The model is a GRU over sub-words. The data are sentences that fifteen people or more scored from -4 to
4 for Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text" (ICWSM 2014). They are part of PyPI's package vaderSentiment. Of the 10,605 from film reviews,
those of a clear sign (mean score at least 0.5 from 0) are classified: 10,072, half of them praise. A
fifth is held out, the same fifth for every seed. The model is trained on the others, with the scores as
soft targets. At half the weight it is also trained on the other scored texts: faint sentences, tweets,
reviews of goods, newspaper editorials, and the words of the lexicon. Texts that share a run of seven
words with a held-out one are left out.
"""

import re
from functools import cached_property

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import nn

from torchport import Example, PackagedData, Recipe, Request, Serving, Signature, TensorSpec
from torchport_runtime.text import TextEncoder, clean_text, pad, train_bpe

VOCABULARY, WIDTH, HIDDEN, MAX_TOKENS = 4000, 96, 64, 128
BATCH_SIZE, LEARNING_RATE, DROPOUT, WORD_DROPOUT = 96, 3e-3, 0.5, 0.25
CLEAR, SHARPNESS, OTHERS_WEIGHT = 0.5, 1.5, 0.5
PADDING, UNKNOWN = 0, 1
LABELS = ("negative", "positive")

PACKAGE = PackagedData(
    "vaderSentiment==3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
CORPORA = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014"
LEXICON = "vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt"
OTHERS = ("tweets", "amazonReviewSnippets", "nytEditorialSnippets")

Scored = list[tuple[str, float]]


class Classifier(nn.Module):
    """Turns vectors [batch, time, width] and mask [batch, time] into logits [batch, 2].

    It is blind to padding. It has a GRU each way, the maximum and an attended mean of its states, and
    the mean of the vectors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forwards = nn.GRU(WIDTH, HIDDEN, batch_first=True)
        self.backwards = nn.GRU(WIDTH, HIDDEN, batch_first=True)
        self.attention = nn.Linear(2 * HIDDEN, 1)
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(4 * HIDDEN + WIDTH, 2)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(mask.shape[1], device=mask.device)[None]
        mask = mask | (steps == 0)  # A row of padding only, which no text becomes, has one step.
        # Each row's own steps turned round, its padding left behind them.
        length = mask.sum(1, keepdim=True)
        turned = torch.where(steps < length, length - 1 - steps, steps)[..., None]
        mask = mask[..., None]
        vectors = self.dropout(vectors) * mask
        ahead, _ = self.forwards(vectors)
        back, _ = self.backwards(vectors.gather(1, turned.expand(-1, -1, WIDTH)))
        states = torch.cat([ahead, back.gather(1, turned.expand(-1, -1, HIDDEN))], 2)
        weights = self.attention(states).masked_fill(~mask, -1e4).softmax(1)
        pooled = [
            states.masked_fill(~mask, -1).amax(1),  # A GRU's states lie between -1 and 1.
            (weights * states).sum(1),
            vectors.sum(1) / length,
        ]
        logits: torch.Tensor = self.output(self.dropout(torch.cat(pooled, 1)))
        return logits


class SentimentModel(nn.Module):
    """Turns tokens [batch, time] into logits [batch, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PADDING)
        with torch.no_grad():
            self.embedding.weight *= 0.1
        self.classifier = Classifier()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.embedding(tokens), tokens != PADDING)
        return logits


class Sentiment(Recipe):
    """Film reviews' sentences, praise or blame, by a bidirectional GRU over sub-words."""

    name, version, handler = "sentiment", "1.0", "text_classifier"
    handler_options = {"labels": list(LABELS), "max_tokens": MAX_TOKENS}
    goals = {"accuracy": ">= 0.76"}
    serving = Serving(batch_size=16)
    requirements = ("tokenizers>=0.20",)

    def configure(self, *, epochs: int = 7) -> None:
        self.epochs = epochs

    def build(self):
        return SentimentModel()

    def signatures(self):
        dims = {"batch": (1, 32), "time": (1, MAX_TOKENS)}
        time = ("batch", "time")
        vectors = {"vectors": TensorSpec("float32", (*time, WIDTH))}
        return {
            "embedding": Signature(
                inputs={"tokens": TensorSpec("int64", time, low=0, high=VOCABULARY - 1)},
                outputs=vectors,
                dims=dims,
            ),
            "main": Signature(
                inputs={**vectors, "mask": TensorSpec("bool", time)},
                outputs={"logits": TensorSpec("float32", ("batch", 2))},
                dims=dims,
            ),
        }

    def graphs(self, model):
        self.embedding = model.embedding.weight.detach().cpu().numpy()  # It makes the samples of `main`.
        return {"embedding": model.embedding, "main": model.classifier}

    @cached_property
    def split(self) -> tuple[Scored, Scored, Scored]:
        """Training sentences, held-out ones, and the other training texts.

        The first two are clear sentences of film reviews.
        """
        films = self.corpus("movieReviewSnippets")
        clear = [row for row in films if abs(row[1]) >= CLEAR]
        others = [row for row in films if abs(row[1]) < CLEAR]
        for name in OTHERS:
            others += self.corpus(name)
        lexicon = PACKAGE.read(LEXICON, self.cache).decode("utf-8").splitlines()
        others += [(word, float(score)) for word, score, *_ in (line.split("\t") for line in lexicon)]
        order = np.random.default_rng(0).permutation(len(clear))
        heldout = [clear[index] for index in order[: len(clear) // 5]]
        seen = set().union(*(runs(text) for text, _ in heldout))
        training = [clear[index] for index in order[len(clear) // 5 :]]
        return (
            [row for row in training if seen.isdisjoint(runs(row[0]))],
            heldout,
            [row for row in others if seen.isdisjoint(runs(row[0]))],
        )

    def describe_input(self, graph, row, assets):
        return self.encoder.decode(row["tokens"]) if "tokens" in row else ""

    def corpus(self, name: str) -> Scored:
        """The texts of one corpus, each with its mean score."""
        lines = PACKAGE.read(f"{CORPORA}/{name}_GroundTruth.txt", self.cache).decode("utf-8").split("\n")
        rows = (line.split("\t", 2) for line in lines if line.strip())
        return [(clean_text(text), float(score)) for _, score, text in rows]

    @cached_property
    def tokenizer(self) -> str:
        training, _, others = self.split
        return train_bpe([text for text, _ in training + others], VOCABULARY, lowercase=True)

    @cached_property
    def encoder(self) -> TextEncoder:
        return TextEncoder.from_json(self.tokenizer, MAX_TOKENS)

    def encoded(self, rows: Scored) -> list[np.ndarray]:
        return [self.encoder.encode(text)[0] for text, _ in rows]

    def train(self, model, run):
        training, heldout, others = self.split
        (run.assets / "tokenizer.json").write_text(self.tokenizer, encoding="utf-8")
        rows = self.encoded(training + others)
        scores = torch.tensor([score for _, score in training + others])
        weights = torch.tensor([1.0] * len(training) + [OTHERS_WEIGHT] * len(others))
        run.fingerprint(np.concatenate(rows), scores.numpy())
        praise = torch.sigmoid(SHARPNESS * scores)
        targets = torch.stack([1 - praise, praise], 1)
        lengths = torch.tensor([len(row) for row in rows])
        steps = len(rows) // BATCH_SIZE
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, total_steps=self.epochs * steps, pct_start=0.15
        )
        loss_function = nn.CrossEntropyLoss(reduction="none")
        state = {"model": model, "optimizer": optimizer, "schedule": schedule}
        for epoch in range(run.restore(**state), self.epochs):
            model.train()
            # Of like lengths, so that little is padding, but not the same together every time.
            order = torch.argsort(lengths + 4 * torch.rand(len(rows)))
            batches = order[: steps * BATCH_SIZE].split(BATCH_SIZE)
            shuffled = [batches[index] for index in torch.randperm(steps)]
            for batch in run.progress(shuffled, f"epoch {epoch + 1} of {self.epochs}", steps):
                tokens = torch.from_numpy(pad([rows[index] for index in batch])[0])
                hidden = (torch.rand(tokens.shape) < WORD_DROPOUT) & (tokens != PADDING)
                logits = model(tokens.masked_fill(hidden, UNKNOWN).to(run.device))
                losses = loss_function(logits, targets[batch].to(run.device))
                loss = (losses * weights[batch].to(run.device)).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            run.checkpoint(epoch + 1, **state)
        return {
            "accuracy": accuracy(model, self.encoded(heldout), heldout, run.device),
            "train_accuracy": accuracy(model, self.encoded(training), training, run.device),
            "bow_accuracy": bag_of_words_accuracy(training, heldout),
        }

    def graph_samples(self, graph):
        return self.fed_with(graph, self.split[1][:64])

    def calibration(self, graph):
        return self.fed_with(graph, self.split[0][:512])

    def fed_with(self, graph, rows):
        """A graph's inputs for these rows, 32 at a time."""
        for start in range(0, len(rows), 32):
            tokens, mask = pad(self.encoded(rows[start : start + 32]))
            if graph == "embedding":
                yield {"tokens": tokens}
            else:
                yield {"vectors": self.embedding[tokens], "mask": mask}

    def requests(self):
        one, two = (text for text, _ in self.split[1][:2])
        foreign = "Très émouvant\N{COMBINING ACUTE ACCENT}, 傑作 \N{CLAPPING HANDS SIGN}"
        endless = " ".join(text for text, _ in self.split[1][:20])

        def tokens(*texts: str) -> dict[str, np.ndarray]:
            return {"tokens": pad([self.encoder.encode(clean_text(text))[0] for text in texts])[0]}

        return [
            Request(body=one.encode(), content_type="text/plain", tensors=tokens(one)),
            Request(json=one, tensors=tokens(one)),
            Request(json={"text": two}, tensors=tokens(two)),
            Request(json=[one, two], tensors=tokens(one, two)),
            Request(json={"instances": [two, foreign, one]}, tensors=tokens(two, foreign, one)),
            Request(json=foreign, tensors=tokens(foreign)),
            Request(body=endless.encode(), content_type="text/plain", tensors=tokens(endless)),
        ]

    def heldout(self):
        for text, score in self.split[1]:
            yield Example(request=Request(json={"text": text}), expected=LABELS[score > 0])

    def score(self, answers, expected):
        right = [answer["label"] == label for answer, label in zip(answers, expected, strict=True)]
        return {"accuracy": float(np.mean(right))}


def runs(text: str, length: int = 7) -> set[str]:
    """All runs of `length` words in a text, which near-duplicates share.

    A shorter text is one run.
    """
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}


def accuracy(model: nn.Module, rows: list[np.ndarray], scored: Scored, device: str) -> float:
    """Fraction of the token sequences whose larger logit is the score's sign."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    right = 0
    for batch in (order[start : start + 64] for start in range(0, len(order), 64)):
        with torch.no_grad():
            guesses = model(torch.from_numpy(pad([rows[i] for i in batch])[0]).to(device)).argmax(1)
        right += sum((scored[i][1] > 0) == bool(guess) for i, guess in zip(batch, guesses, strict=True))
    return right / len(rows)


def bag_of_words_accuracy(training: Scored, heldout: Scored) -> float:
    """Accuracy of logistic regression on weighted counts of words.

    It is the minimum that a network must reach.
    """
    counts = TfidfVectorizer(sublinear_tf=True)
    model = LogisticRegression(C=3, max_iter=1000)
    model.fit(counts.fit_transform([text for text, _ in training]), [score > 0 for _, score in training])
    right = model.score(counts.transform([text for text, _ in heldout]), [score > 0 for _, score in heldout])
    return float(right)
