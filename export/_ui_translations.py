"""Training and held-out strings of `translate_en_fr`, and two baselines.

training, held = split(cache)         # [("Close all tabs", "Fermer tous les onglets"), ...]
PhraseLookup(training)("Close the notebook")

The baselines are look-ups in the training strings.
"""

import json
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

from torchport import PackagedData
from torchport_runtime.ui_strings import tidy

DATA = PackagedData(
    "jupyterlab-language-pack-fr-FR==4.5.post3",
    file="jupyterlab_language_pack_fr_fr-4.5.post3-py2.py3-none-any.whl",
    sha256="9f6ce9d4e64b367ff084a2313af29d6ad8a02d1d08000f3e6c53e2856fa9a11f",
)
Pairs = list[tuple[str, str]]


def near(text: str) -> str:
    """Key that near-duplicates share: words in lower case, without digits and final s."""
    return " ".join(word.rstrip("s") for word in re.findall(r"[^\W\d_]+", text.lower()))


@lru_cache(maxsize=1)
def split(cache: Path) -> tuple[Pairs, Pairs]:
    """Training and held-out pairs of an English string and its French."""
    pairs: dict[str, str] = {}
    with zipfile.ZipFile(DATA.path(cache)) as wheel:
        for name in sorted(n for n in wheel.namelist() if re.search(r"/LC_MESSAGES/[^/]*\.json$", n)):
            for key, translations in json.loads(wheel.read(name)).items():
                # The key may start with a context ("settings\x04..."); of plurals the first form is taken.
                english = tidy(key.rpartition("\x04")[2])
                french = tidy(translations[0]) if key else ""
                if french and english != french and near(english) and len(english.split()) <= 30:
                    pairs.setdefault(english, french)
    held = [
        pair
        for pair in pairs.items()
        if zlib.crc32(near(pair[0]).encode()) % 9 == 0 and 2 <= len(pair[0].split()) <= 20
    ]
    seen = [{near(text) for text in side} for side in zip(*held, strict=True)]
    training = [(e, f) for e, f in pairs.items() if near(e) not in seen[0] and near(f) not in seen[1]]
    return training, held


def words(text: str) -> list[str]:
    return re.findall(r"%\d+|\w+'?|[^\w\s]", text)


class PhraseLookup:
    """Baseline: replaces the longest known phrases by their most frequent translations (Dice)."""

    def __init__(self, pairs: Pairs, longest: int = 4):
        self.longest, together = longest, defaultdict(Counter)
        english_counts, french_counts = Counter(), Counter()
        for english, french in pairs:
            left = self.phrases(words(english.lower()), longest)
            right = self.phrases(words(french), longest + 2)
            english_counts.update(left)
            french_counts.update(right)
            for phrase in left:
                together[phrase].update(right)
        self.table = {}
        for phrase, counts in together.items():
            if english_counts[phrase] > 1 or len(phrase) == 1:
                total = english_counts[phrase]
                self.table[phrase] = max(
                    counts,
                    key=lambda f: (2 * counts[f] / (total + french_counts[f]), -abs(len(f) - len(phrase)), f),
                )

    @staticmethod
    def phrases(tokens: list[str], longest: int) -> set[tuple[str, ...]]:
        return {tuple(tokens[i : i + n]) for n in range(1, longest + 1) for i in range(len(tokens) - n + 1)}

    def __call__(self, english: str) -> str:
        tokens, out = words(english), []
        while tokens:
            for n in range(min(self.longest, len(tokens)), 0, -1):
                phrase = tuple(token.lower() for token in tokens[:n])
                if phrase in self.table or n == 1:
                    out += self.table.get(phrase, tokens[:1])
                    del tokens[:n]
                    break
        text = re.sub(r" ([.,…)\]])", r"\1", " ".join(out))
        return re.sub(r"(\w'|[(\[]) ", r"\1", text)


def nearest(pairs: Pairs, english: str) -> str:
    """Baseline: the translation of the training string that shares most words."""
    wanted = set(words(english.lower()))

    def overlap(pair: tuple[str, str]) -> float:
        other = set(words(pair[0].lower()))
        return 2 * len(wanted & other) / (len(wanted) + len(other))

    return max(pairs, key=overlap)[1]


def bleu(translations: list[str], references: list[str]) -> float:
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(translations, [references]).score)


@lru_cache(maxsize=1)
def baselines(cache: Path) -> dict[str, float]:
    """BLEU of the baselines on the held-out strings.

    They are the untranslated string and two look-ups.
    """
    training, held = split(cache)
    references = [french for _, french in held]
    phrases = PhraseLookup(training)
    return {
        "copy_bleu": bleu([english for english, _ in held], references),
        "phrase_bleu": bleu([phrases(english) for english, _ in held], references),
        "nearest_bleu": bleu([nearest(training, english) for english, _ in held], references),
    }
