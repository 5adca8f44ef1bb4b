"""A handler that streams what a test asks for, and clients of it that read piece by piece.

The body says what a row does: its words, one for each step. `wait:PATH` stays until there is such a file;
`hold:PATH` lets the whole step wait for it; `die:PATH` ends the process unless there is one, and makes it;
`bad` is a client's error, `break` the handler's.
"""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from torchport.targets.torchport_serve import ServerProcess

STEPPING = """
    import os
    import time
    from pathlib import Path

    import torchport_runtime as runtime


    class Stepping(runtime.Handler):
        def initialize(self, context):
            self.initialized = True

        def join(self, row):
            asked = row.request.json()
            row.state = list(asked["words"])
            row.name, row.note = asked.get("name", ""), asked.get("note")

        def step(self, rows):
            time.sleep(0.001)
            for row in rows:
                if row.note:
                    with open(row.note, "a") as file:
                        file.write(row.name + "\\n")
                self.one(row)

        def one(self, row):
            word, _, rest = row.state[0].partition(":") if row.state else ("", "", "")
            if word == "wait":
                if not Path(rest).exists():
                    return
            elif word == "hold":
                Path(rest + ".held").touch()
                while not Path(rest).exists():
                    time.sleep(0.001)
            elif word == "die":
                if not Path(rest).exists():
                    Path(rest).touch()
                    os._exit(3)
            elif word == "bad":
                return row.fail(runtime.BadRequest("a bad word"))
            elif word == "break":
                raise ValueError("broken")
            elif row.state:
                row.send({"word": word} if row.content_type == "application/x-ndjson" else word + " ")
            del row.state[:1]
            if not row.state:
                row.end()

        def leave(self, row):
            if row.note:
                with open(row.note, "a") as file:
                    file.write(row.name + (" is gone" if row.is_gone else " has ended") + "\\n")
"""

GENERATING = """
    import time
    from pathlib import Path

    import torchport_runtime as runtime


    class Generating(runtime.Handler):
        stream_type = "audio/wav"

        def initialize(self, context):
            self.initialized = True

        def stream(self, request):
            asked = request.json()
            if "gate" not in asked:
                raise runtime.BadRequest("no gate")
            try:
                yield b"RIFF"
                while not Path(asked["gate"]).exists():
                    time.sleep(0.001)
                    yield None
                yield b"\\x00\\xff"
            except GeneratorExit:
                Path(asked["gate"] + ".left").touch()
                raise
"""


class Stream:
    """A request by REST whose answer is read piece by piece."""

    def __init__(self, server: ServerProcess, model: str, asked: Any, **headers: str) -> None:
        address = server.urls["inference"].removeprefix("http://")
        self._connection = http.client.HTTPConnection(address, timeout=180)
        headers = {"Content-Type": "application/json", **headers}
        self._connection.request("POST", f"/predictions/{model}", json.dumps(asked), headers)
        self._answer: http.client.HTTPResponse | None = None

    @property
    def answer(self) -> http.client.HTTPResponse:
        if self._answer is None:
            self._answer = self._connection.getresponse()
        return self._answer

    def piece(self) -> bytes:
        """What is there of the body, and at least a byte of it."""
        return self.answer.read1()

    def rest(self) -> bytes:
        return self.answer.read()

    def leave(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


def words(*asked: str, **more: str) -> dict[str, Any]:
    return {"words": list(asked), **more}


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
