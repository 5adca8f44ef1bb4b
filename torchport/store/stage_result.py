"""Result of a stage: its record, and whether there was work to do.

StageResult(done=False, record=folder.training_record(), why="unchanged recipe and seed")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageResult:
    """What every stage returns: whether it ran, and why or why not.

    `done` is False if the files existed already.
    """

    done: bool
    record: dict[str, Any]
    why: str
