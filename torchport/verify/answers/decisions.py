"""What an answer decides, and whether two answers decide alike: boxes by their overlap, texts and lists of
whole numbers as sequences, labels by their names, numbers within rounding, pictures within a grey level.

    one = decided({"boxes": [{"box": [10.0, 10.0, 50.0, 50.0], "label": "7", "score": 0.9}]})
    one.kind                             # "boxes"
    differing(one, other)                # "" where both decide alike, else what differs

Scores and probabilities beside a decision are no part of it: `score_difference` says how far apart they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from torchport.verify.answers.equality import RTOL, arrays_of, same_answer
from torchport.verify.outputs.reference import EAGER_MULTIPLE
from torchport_runtime.boxes import iou

KINDS = ("boxes", "picture", "sequence", "label", "number", "json")
"""An answer that holds several of these is of the first one; all of them must be the same."""

OVERLAP = 0.9
"""Intersection over union from which on two boxes of one label are the same box."""

SURE = 0.5
"""A finding of a lower score may be listed, for a curve of precision and recall, but is not claimed."""

SHOWN = 80
"""Characters of a text that are shown where it differs."""


@dataclass(frozen=True)
class Part:
    """One decision in an answer. `path` says where: `boxes`, or `0.translation`."""

    path: str
    kind: str
    value: Any


@dataclass(frozen=True)
class Decided:
    """An answer's decisions in the order of the answer; `scores` are the numbers beside them, by path."""

    parts: tuple[Part, ...]
    scores: Mapping[str, float]

    @property
    def kind(self) -> str:
        """The first of `KINDS` that is in it."""
        return min((part.kind for part in self.parts), key=KINDS.index, default="json")


def decided(answer: Any, decides: str = "") -> Decided:
    """What an answer, as a client reads it, decides.

    `decides` is the handler's own word, which matters for numbers alone: with "label" several of them are
    scores of classes, of which the greatest counts; with "number" they never are. Without it, numbers by
    name from 1 to 0 in falling order are taken for such scores.
    """
    parts, scores = [], {}
    for part in _parts(answer, "", decides):
        if part.kind == "score":
            scores[part.path] = float(part.value)
        else:
            parts.append(part)
    discrete = any(part.kind != "number" for part in parts)
    numbers = [part for part in parts if part.kind == "number"]
    if discrete and numbers:  # Beside a label or a box they say how sure it is.
        scores |= {p.path: float(v) for p in numbers if (v := p.value).size == 1}
        parts = [part for part in parts if part.kind != "number" or part.value.size != 1]
    return Decided(tuple(parts), scores)


def differing(one: Decided, truth: Decided, eager: Decided | None = None) -> str:
    """What `one` decides otherwise than `truth`; "" where nothing.

    Numbers may be off by `RTOL` of the greatest beside them, or `EAGER_MULTIPLE` times what `eager` is off.
    """
    if [(p.path, p.kind) for p in one.parts] != [(p.path, p.kind) for p in truth.parts]:
        return f"it has {_shape(one)}, the trained model's has {_shape(truth)}"
    for index, (got, expected) in enumerate(zip(one.parts, truth.parts, strict=True)):
        same_place = eager is not None and len(eager.parts) == len(truth.parts)
        beside = eager.parts[index].value if eager is not None and same_place else None
        problem = _differs(got, expected, beside)
        if problem:
            return f"{got.path}: {problem}" if got.path else problem
    return ""


def choices(answer: Decided) -> Decided:
    """What is left where numbers may be other ones, as in INT8: labels, texts, tokens, and boxes of a score
    of at least `SURE`. There may be none."""
    kept = []
    for part in answer.parts:
        if part.kind == "boxes":
            sure = [box for box in part.value if box.get("score", 1.0) >= SURE]
            # A list of none is not known to be one of boxes: what has lost all its boxes is like that.
            kept.append(replace(part, kind="boxes" if sure else "json", value=sure))
        elif part.kind in ("sequence", "label", "json"):
            kept.append(part)
    return Decided(tuple(kept), {})


def score_difference(one: Decided, truth: Decided) -> float:
    """How far apart scores are at most, those of boxes that are the same among them."""
    apart = [abs(value - truth.scores[path]) for path, value in one.scores.items() if path in truth.scores]
    for got, expected in zip(one.parts, truth.parts, strict=False):
        if got.kind == expected.kind == "boxes":
            apart += [
                abs(got.value[i]["score"] - expected.value[j]["score"])
                for i, j in matched(got.value, expected.value)
                if "score" in got.value[i] and "score" in expected.value[j]
            ]
    return max(apart, default=0.0)


def matched(
    boxes: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], overlap: float = OVERLAP
) -> list[tuple[int, int]]:
    """The greatest one-to-one matching, by index, of boxes with others of their label that overlap enough."""
    if not boxes or not others:
        return []
    sides, other_sides = (np.array([b["box"] for b in of], np.float64) for of in (boxes, others))
    alike = iou(sides, other_sides) >= overlap
    alike |= (sides[:, None] == other_sides[None]).all(axis=2)  # Boxes without an area overlap with nothing.
    labels, other_labels = ([_name(b) for b in of] for of in (boxes, others))
    alike &= np.array([[one == other for other in other_labels] for one in labels])
    taken: dict[int, int] = {}

    def find(box: int, seen: set[int]) -> bool:
        """Give a box a partner, others moving on to another of theirs where they can."""
        for other in np.flatnonzero(alike[box]).tolist():
            if other not in seen:
                seen.add(other)
                if other not in taken or find(taken[other], seen):
                    taken[other] = box
                    return True
        return False

    for box in range(len(boxes)):
        find(box, set())
    return sorted((box, other) for other, box in taken.items())


def _parts(value: Any, path: str, decides: str) -> Iterator[Part]:
    if isinstance(value, bytes):
        held = arrays_of(value)
        if held is None:
            yield Part(path, "picture", value)
            return
        # A file of numpy's: over the model in float64 its numbers are float64, which is no other decision.
        for name, array in held.items():
            fractions = array.dtype.kind == "f"
            kind = "number" if fractions else "sequence"
            yield Part(_below(path, name), kind, array.astype(np.float64) if fractions else array.tolist())
    elif isinstance(value, Mapping):
        if _is_scores(list(value.values()), decides):
            best = max(value, key=lambda name: value[name])
            yield Part(path, "label", best)
            yield Part(_below(path, best), "score", value[best])
            return
        for name, inner in value.items():
            below = _below(path, str(name))
            if name == "label" and isinstance(inner, str):
                yield Part(below, "label", inner)
            elif isinstance(inner, list) and (_are_boxes(inner) or (name == "boxes" and not inner)):
                yield Part(below, "boxes", inner)
            else:
                yield from _parts(inner, below, decides)
    elif isinstance(value, list):
        if _are_boxes(value):
            yield Part(path, "boxes", value)
        elif value and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            yield Part(path, "sequence", value)
        elif decides == "label" and len(value) > 1 and all(isinstance(item, float) for item in value):
            yield Part(path, "label", int(np.argmax(value)))
        elif not value:
            yield Part(path, "json", value)
        elif (numbers := _numbers(value)) is not None:
            yield Part(path, "number", numbers)
        else:
            for index, item in enumerate(value):
                yield from _parts(item, _below(path, str(index)), decides)
    elif isinstance(value, str):
        yield Part(path, "sequence", value)
    elif isinstance(value, float):
        yield Part(path, "number", np.array(value))
    elif isinstance(value, int):  # A class, or yes or no.
        yield Part(path, "label", value)
    else:
        yield Part(path, "json", value)


def _is_scores(values: list[Any], decides: str) -> bool:
    if not values or not all(isinstance(value, float) for value in values) or decides == "number":
        return False
    falling = all(a >= b for a, b in pairwise(values))
    return decides == "label" or (falling and values[-1] >= 0 and sum(values) <= 1 + RTOL)


def _are_boxes(value: list[Any]) -> bool:
    return bool(value) and all(
        isinstance(item, Mapping)
        and isinstance(item.get("box"), list)
        and len(item["box"]) == 4
        and all(isinstance(side, (int, float)) for side in item["box"])
        for item in value
    )


def _numbers(value: list[Any]) -> np.ndarray | None:
    """Nested lists of numbers, some of them fractions, as one array."""
    try:
        array = np.array(value)
    except ValueError:  # Of uneven lengths.
        return None
    return array if array.dtype.kind == "f" else None


def _differs(got: Part, expected: Part, eager: Any) -> str:
    if got.kind == "boxes":
        return _other_boxes(got.value, expected.value)
    if got.kind == "picture":
        same = same_answer(got.value, expected.value, rtol=RTOL, atol=RTOL)
        return "" if same else "the picture or the file is another"
    if got.kind == "number":
        return _other_numbers(got.value, expected.value, eager)
    if got.value == expected.value:
        return ""
    if got.kind == "sequence":
        return _other_sequence(got.value, expected.value)
    return f"{_short(got.value)}, the trained model says {_short(expected.value)}"


def _other_boxes(boxes: list[Any], expected: list[Any]) -> str:
    pairs = matched(boxes, expected)
    if len(pairs) == len(boxes) == len(expected):
        return ""
    said = f"{len(pairs)} of {len(boxes)} boxes are among the trained model's {len(expected)}"
    lost = sorted(set(range(len(expected))) - {other for _, other in pairs})
    new = sorted(set(range(len(boxes))) - {box for box, _ in pairs})
    missing = f", without {_box(expected[lost[0]])}" if lost else ""
    added = f", with {_box(boxes[new[0]])}" if new else ""
    return f"{said}{missing}{added}"


def _other_numbers(got: np.ndarray, expected: np.ndarray, eager: Any) -> str:
    if got.shape != expected.shape:
        return f"{list(got.shape)} numbers, the trained model gives {list(expected.shape)}"
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
        return "NaN or Inf is not where the trained model has it"
    bound = RTOL * float(np.abs(expected[finite]).max(initial=0.0))
    if isinstance(eager, np.ndarray) and eager.shape == expected.shape:
        moved = np.abs(eager[finite] - expected[finite])
        bound = max(bound, EAGER_MULTIPLE * float(moved.max(initial=0.0)))
    error = np.zeros(expected.shape)
    error[finite] = np.abs(got[finite] - expected[finite])
    if not error.size or float(error.max()) <= bound:
        return ""
    at = np.unravel_index(int(error.argmax()), error.shape)
    return f"{got[at]:.6g}, the trained model says {expected[at]:.6g}"


def _other_sequence(got: Any, expected: Any) -> str:
    pairs = zip(got, expected, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(expected)))
    unit = "character" if isinstance(got, str) else "token"
    return f"{_short(got)}, the trained model says {_short(expected)} (from {unit} {first} on)"


def _box(box: Mapping[str, Any]) -> str:
    score = f" of score {box['score']:.4g}" if isinstance(box.get("score"), (int, float)) else ""
    return f"{_name(box)!r} at {[round(side, 1) for side in box['box']]}{score}"


def _name(box: Mapping[str, Any]) -> Any:
    return box.get("label")


def _shape(of: Decided) -> str:
    return ", ".join(f"{p.path or 'the answer'} ({p.kind})" for p in of.parts[:6]) or "nothing"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
