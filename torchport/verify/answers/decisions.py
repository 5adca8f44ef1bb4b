"""Extracts what an answer decides, and compares the decisions of two answers.

Boxes are compared by their overlap, texts and lists of whole numbers as sequences, labels by their
names, numbers within rounding, pictures within a grey level:

    one = decided({"boxes": [{"box": [10.0, 10.0, 50.0, 50.0], "label": "7", "score": 0.9}]})
    one.kind                             # "boxes"
    differing(one, other)                # "" if both decide alike, else what differs

Scores and probabilities next to a decision are not part of it: `score_difference` compares them.
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
"""Kinds of decisions. An answer that holds several is of the first of them; all of them must agree."""

OVERLAP = 0.9
"""Minimum intersection over union of boxes that count as the same. Both must have one label."""

SURE = 0.5
"""Minimum score of a box that counts as found. Boxes below it may be listed, for a curve of precision and
recall."""

SHOWN = 80
"""Maximum characters of a text in a message; the rest is cut off."""


@dataclass(frozen=True)
class Part:
    """One decision in an answer. `path` says where it stands: `boxes`, or `0.translation`."""

    path: str
    kind: str
    value: Any


@dataclass(frozen=True)
class Decided:
    """The decisions of an answer, in its order.

    `scores` are the numbers next to them, by path.
    """

    parts: tuple[Part, ...]
    scores: Mapping[str, float]

    @property
    def kind(self) -> str:
        """The first of `KINDS` that is among the decisions."""
        return min((part.kind for part in self.parts), key=KINDS.index, default="json")


def decided(answer: Any, decides: str = "") -> Decided:
    """Extract the decisions of an answer, as a client reads it.

    `decides` is the handler's own word, and matters for numbers only. With "label", several numbers are
    scores of classes, and the highest one decides. With "number" they never are. Without it, numbers by
    name are taken for such scores if they fall from 1 to 0.
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
    """Describe what `one` decides otherwise than `truth`; "" if they agree.

    Numbers may be off by `RTOL` of the largest number next to them, or by `EAGER_MULTIPLE` times the
    distance of `eager`.
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
    """Decisions that must agree even if numbers may change, as in INT8.

    These are labels, texts, tokens, and boxes with a score of at least `SURE`. The result may be empty.
    """
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
    """Maximum difference of scores, including those of matching boxes."""
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
    """Maximum one-to-one matching, by index, of overlapping boxes with the same label."""
    if not boxes or not others:
        return []
    sides, other_sides = (np.array([b["box"] for b in of], np.float64) for of in (boxes, others))
    alike = iou(sides, other_sides) >= overlap
    alike |= (sides[:, None] == other_sides[None]).all(axis=2)  # Boxes without an area overlap with nothing.
    labels, other_labels = ([_name(b) for b in of] for of in (boxes, others))
    alike &= np.array([[one == other for other in other_labels] for one in labels])
    taken: dict[int, int] = {}

    def find(box: int, seen: set[int]) -> bool:
        """Find a partner for a box; boxes with one move on if possible."""
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
