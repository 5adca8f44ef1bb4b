"""What TorchServe's logs say of a start that failed.

load_failure(run)                # "ValueError: no such luck"; None if no worker has died
"""

from __future__ import annotations

import time
from pathlib import Path

TRACEBACK_S = 5.0
"""Seconds for a dead worker's traceback to reach the log. It is written line by line, its reason last."""

_QUIET_S = 0.3
_MODEL_LOG = "logs/model_log.log"
_DIED = "Backend worker process died"


def log_tail(run: Path, lines: int = 25) -> str:
    """The last lines of the logs in TorchServe's run folder, where a handler's traceback is found."""
    text = ""
    for name in (_MODEL_LOG, "console.log"):
        path = run / name
        if path.is_file():
            text += f"--- {path}\n" + "\n".join(_lines(path)[-lines:]) + "\n"
    return text


def load_failure(run: Path) -> str | None:
    """The error that ended a worker's process; None if none has ended.

    TorchServe itself would try again for minutes.
    """
    lines = _lines_of_death(run)
    deadline = time.monotonic() + TRACEBACK_S
    while lines and time.monotonic() < deadline:
        time.sleep(_QUIET_S)
        before, lines = lines, _lines_of_death(run)
        if lines == before and _errors(lines):
            break
    if not lines:
        return None
    errors = _errors(lines)
    return (errors[-1] if errors else lines[0]).split(" - ", 1)[-1].strip()


def _lines_of_death(run: Path) -> list[str]:
    """The model log from the first worker's death on."""
    path = run / _MODEL_LOG
    lines = _lines(path) if path.is_file() else []
    return next((lines[index:] for index, line in enumerate(lines) if _DIED in line), [])


def _errors(lines: list[str]) -> list[str]:
    return [line for line in lines if "Error" in line or "Exception" in line]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
