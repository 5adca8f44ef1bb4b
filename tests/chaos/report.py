"""The report of a chaos run.

print(report)
sys.exit(1 if report.faults else 0)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SHOWN = 40
"""Number of faults that are printed; all are among the events in the run's folder."""


@dataclass
class Report:
    """What was done, in lines, and what was lost."""

    seed: int
    minutes: float
    folder: Path
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        first = f"chaos run, seed {self.seed}, {self.minutes:g} min"
        if not self.faults:
            last = ["nothing was lost, doubled, mixed up or left over"]
        else:
            last = [f"{len(self.faults)} faults:", *(f"  {fault}" for fault in self.faults[:SHOWN])]
            if len(self.faults) > SHOWN:
                last.append(f"  and {len(self.faults) - SHOWN} more")
            last.append(f"log and events: {self.folder}")
            last.append(f"again: python -m tests.chaos --minutes {self.minutes:g} --seed {self.seed}")
        return "\n".join([first, *(f"  {line}" for line in self.lines), *last])
