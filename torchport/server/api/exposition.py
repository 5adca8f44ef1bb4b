"""Prometheus' text format, with labels in the order in which they were given.

    text_of(collector.collect(), only={"Requests2XX"})

TorchServe writes them in their declared order, and what reads its metrics by lines expects that; the client
library sorts them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from prometheus_client import utils

_number: Callable[[float], str] = utils.floatToGoString

_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_ESCAPED_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})

_TYPES = {"unknown": "counter"}
"""Counters that do not end in `_total`, as TorchServe's: the library has no name for those."""


def text_of(families: Iterable[Any], only: Collection[str] = ()) -> str:
    """The families in text; `only` names those, or the samples of others, that are wanted; all if empty."""
    lines: list[str] = []
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        samples = family.samples
        if only and name not in only:
            samples = [sample for sample in samples if sample.name in only]
            if not samples:
                continue
        lines.append(f"# HELP {name} {family.documentation.translate(_ESCAPED_HELP)}\n")
        lines.append(f"# TYPE {name} {_TYPES.get(family.type, family.type)}\n")
        lines += [f"{s.name}{_labels(s.labels)} {_number(s.value)}\n" for s in samples]
    return "".join(lines)


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    pairs = ",".join(f'{name}="{text.translate(_ESCAPED)}"' for name, text in labels.items())
    return f"{{{pairs}}}"
