"""The command of a chaos run: `python -m tests.chaos --minutes 10 [--seed 7]`.

It ends with 1 if anything was lost, doubled, given to the wrong caller or left over.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to run (10)")
    parser.add_argument("--seed", type=int, help="of the decisions; another one each time unless given")
    parser.add_argument("--folder", type=Path, help="for the log and the store; kept only after faults")
    asked = parser.parse_args()
    seed = secrets.randbelow(1 << 16) if asked.seed is None else asked.seed
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="torchport-chaos-"))
    print(f"seed {seed}, in {folder}", flush=True)
    report = run(minutes=asked.minutes, seed=seed, folder=folder)
    print(report)
    if report.faults:
        return 1
    if asked.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
