"""The tables of `docs/formats.md`, to compare with what the stages write.

undocumented("training.json", record)    # [] where every key of the record is on the page
missing("training.json", record)         # [] where every key that the page promises is in the record
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "formats.md"

Path = tuple[str, ...]
"""Keys from the outermost on; `[]` stands for each element of a list."""

_KEYS_OF = re.compile(r"Keys of `([^`]+)`")
_KEY = re.compile(r"`([^`]+)`(\??)")
_SEGMENT = re.compile(r'\["([^"]+)"\]|(\[\])|([^.\[]+)')
_NAME = re.compile(r"[A-Z_]+")
_ANYTHING = "*"


def undocumented(section: str, record: Any) -> list[str]:
    """Keys of a record that the section does not have."""
    known = documented(section)
    return sorted(
        ".".join(path) for path in _paths(record) if not any(_matches(pattern, path) for pattern in known)
    )


def missing(section: str, record: Any) -> list[str]:
    """Keys that the section says are always there, and that a record lacks."""
    there = {(), *_paths(record)}
    return sorted(
        ".".join((*parent, pattern[-1]))
        for pattern, always in documented(section).items()
        if always and not _is_name(pattern[-1])
        for parent in there
        if _matches(pattern[:-1], parent) and (*parent, pattern[-1]) not in there
    )


@cache
def documented(section: str) -> dict[Path, bool]:
    """The keys of a section, with whether they are always there; those that they are in besides."""
    found: dict[Path, bool] = {}
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    prefix: Path = ()
    for line in text.splitlines():
        if keys_of := _KEYS_OF.match(line):
            prefix = _segments(keys_of[1])
        if not line.startswith("| `"):
            continue
        for key, optional in _KEY.findall(line.split(" | ")[0]):
            path = (*prefix, *_segments(key))
            found[path] = not optional
            for length in range(1, len(path)):
                found.setdefault(path[:length], False)
    assert found, f"no keys in section {section} of {PAGE.name}"
    return found


def _segments(key: str) -> Path:
    return tuple("".join(parts) for parts in _SEGMENT.findall(key))


def _paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Where there is anything in a record; the elements of a list where they are objects."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from _paths(inner, (*at, key))
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict):
                yield (*at, "[]")
            yield from _paths(inner, (*at, "[]"))


def _matches(pattern: Path, path: Path) -> bool:
    if pattern and pattern[-1] == _ANYTHING:
        return len(path) >= len(pattern) and _matches(pattern[:-1], path[: len(pattern) - 1])
    return len(pattern) == len(path) and all(
        known == key or (bool(_NAME.fullmatch(known)) and key != "[]")
        for known, key in zip(pattern, path, strict=True)
    )


def _is_name(segment: str) -> bool:
    """Whether it stands for other keys, of which there may be none."""
    return segment in ("[]", _ANYTHING) or _NAME.fullmatch(segment) is not None
