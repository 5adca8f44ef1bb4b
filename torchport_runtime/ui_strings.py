"""Prepares strings of user interfaces for translation, and restores them after.

    string = read_string("Open “%1” in JupyterLab…")
    string.text                              # 'open “\\ue000” in \\ue001…'
    string.restore("ouvrir “\\ue000” dans \\ue001…")   # 'Ouvrir “%1” dans JupyterLab…'

Placeholders, addresses, code, file names, names such as JupyterLab, and words in characters that French
and English lack, stay as they are: each becomes a slot, one private character, and is restored after. So
the model need not learn them. The rest is in lower case, and the translation's first letter gets the case
of the original's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchport_runtime.text import TextEncoder

SLOTS = "".join(chr(0xE000 + index) for index in range(10))
"""Characters of Unicode's private use area, which no alphabet has."""
MAX_CHARACTERS = 1000
"""Maximum characters of one string; the rest is cut, because no model of such strings takes more."""

_KEPT = re.compile(
    r"%\d+"
    r"|\$?\{+[^{}\s]*\}+"
    r"|`[^`]+`"
    r"|https?://[^\s,;)>]+"
    r"|[^\s]*[^\x20-\x7e\u00a0-\u00ff\u0152\u0153\u0178\u2013\u2014\u2018-\u201e\u2022\u2026\u20ac][^\s]*"
    r"|\w+(?:_\w+)+"
    r"|\w{2,}\.\w{2,}"
    r"|\b[A-Za-z]*[a-z][A-Z]\w*"
)
_LETTER = re.compile(r"[^\W\d_]")
_FIRST_WORD = re.compile(r"\W*([^\W\d_])([^\W\d_]*)")
_SLOT = re.compile(f"[{SLOTS}]")


@dataclass(frozen=True)
class UiString:
    """A string as a model gets it, and what restores its translation.

    Attributes:
        text: in lower case, with slots.
        kept: what each slot stands for, by slot.
        capital: whether the original starts with a capital.
    """

    text: str
    kept: dict[str, str]
    capital: bool

    def restore(self, translation: str) -> str:
        """The translation with filled slots and the original's case of first letter."""
        first = _FIRST_WORD.match(translation)
        if self.capital and first and not _SLOT.search(translation[: first.start(1)]):
            at = first.start(1)
            translation = translation[:at] + translation[at].upper() + translation[at + 1 :]
        return _SLOT.sub(lambda slot: self.kept.get(slot[0], ""), translation)


def tidy(text: str) -> str:
    """Write a string one way: one line, NFC, plain apostrophes and `…`."""
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'").replace("...", "…")
    return " ".join(text.split())


def read_string(text: str, slots: Sequence[str] = SLOTS, *, only_in: str | None = None) -> UiString:
    """Convert a string to what a model gets.

    If there are more things to keep than `slots`, the last ones stay in the text.

    Args:
        slots: characters for the slots, in the order of their use.
        only_in: keep only what is also in this text, the translation that is learned from.
    """
    text = tidy(text)
    names: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        value = match[0]
        if only_in is not None and value not in only_in:
            return value
        if value not in names:
            if len(names) == len(slots):
                return value
            names[value] = slots[len(names)]
        return names[value]

    hidden = _KEPT.sub(hide, text)
    letter = _LETTER.search(hidden)
    return UiString(
        text=hidden.lower(),
        kept={slot: value for value, slot in names.items()},
        capital=letter is not None and letter[0].isupper(),
    )


def read_pair(original: str, translation: str, slots: Sequence[str] = SLOTS) -> tuple[str, str]:
    """A string and its translation, as a model learns from them.

    What both keep is a slot in both.
    """
    translation = tidy(translation)
    string = read_string(original, slots, only_in=translation)
    for slot, value in sorted(string.kept.items(), key=lambda item: -len(item[1])):
        translation = translation.replace(value, slot)
    first = _FIRST_WORD.match(translation)
    if first and first[1].isupper() and (not first[2] or first[2].islower()):
        at = first.start(1)
        translation = translation[:at] + translation[at].lower() + translation[at + 1 :]
    return string.text, translation


def source_tokens(encoder: TextEncoder, text: str, end: int) -> tuple[UiString, np.ndarray, bool]:
    """One text as an encoder's input.

    Returns:
        the string that restores its translation; tokens int64 [n], `end` last; whether the text was cut.
    """
    string = read_string(text[:MAX_CHARACTERS])
    ids, cut = encoder.encode(string.text)
    return string, np.append(ids, end), cut or len(text) > MAX_CHARACTERS
