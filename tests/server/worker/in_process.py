"""A worker's models in the process of the tests, with a handler that does what a test says.

worker = Worker(tmp_path, rows=2)
worker.answer(lambda data, context: ["a", "b"]).answers
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchport.server.wire import HEADER, Answered, Field, Load, Loaded, Partial, Predict, Row, decode_report
from torchport.server.worker.log_reports import WorkerLog
from torchport.server.worker.sanitizing import safe_frame
from torchport.server.worker.serving import Models
from torchport.server.worker.shared_memory import SharedMemory

HANDLER = f"""
import sys

def handle(data, context):
    if data is None:
        return None
    return sys.modules[{__name__!r}].act(data, context)
"""

Act = Callable[[Any, Any], Any]

act: Act
"""What the handler does with the next batch."""


class Worker:
    """One model in a process that it might share, and what the front reads of its reports."""

    def __init__(self, folder: Path, *, rows: int, max_response_size: int = 0) -> None:
        (folder / "model_handler.py").write_text(HANDLER)
        (folder / "MAR-INF").mkdir()
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": {}}))
        self._rows = [Row(f"id{n}", [], [Field("body", "text/plain", bytearray(b"x"))]) for n in range(rows)]
        self.reports: list[Any] = []
        self._models = Models(self._send, WorkerLog(self._send), SharedMemory(-1, -1))
        load = Load("m", "1.0", str(folder), "model_handler.py", "", rows, None, True, True, 1, True)
        load.max_response_size = max_response_size
        self._models.obey(load)
        assert isinstance(self.reports[-1], Loaded), self.reports

    def _send(self, *reports: Any) -> None:
        for report in reports:
            self.reports.append(decode_report(memoryview(safe_frame(report))[HEADER.size :]))

    def answer(self, does: Act) -> Answered:
        """What comes of one batch; pieces of streams are before it in `reports`."""
        global act
        act = does
        self.reports.clear()
        self._models.obey(Predict(1, 7, list(self._rows)))
        *pieces, answered = self.reports
        assert isinstance(answered, Answered)
        assert answered.batch == 7
        assert len(answered.answers) == len(self._rows)
        assert all(isinstance(piece, Partial) for piece in pieces)
        return answered
