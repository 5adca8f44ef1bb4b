"""The result of a stage: the record that it left, and whether there was work to do.

StageResult(done=False, record=folder.training_record(), why="unchanged recipe and seed")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """`done` is False if the files were there already; `why` says why they were made, or why not."""

    done: bool
    record: dict[str, Any]
    why: str
