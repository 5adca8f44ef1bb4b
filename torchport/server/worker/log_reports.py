"""What is logged in a worker, as reports to the front: a record stays one, with its level and its traceback.

    log = WorkerLog(channel.send)
    log.install()
    with log.at("linear 1.0", slot, ["request-id"]):
        handler.handle(data, context)    # what it logs has the ids of its requests

Warnings, errors and tracebacks are reports. The rest is printed, and the front reads it line by line: so is
what a child process logs, which must not write into its parent's channel.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from torchport.server.wire import Logged
from torchport.server.worker.sanitizing import traceback_of

MAX_TEXT = 1 << 16
"""Characters of a message or a traceback. Of a longer one, the beginning and the end are kept."""

CALLS = 50
"""Calls of a traceback that are kept: the last ones."""

OWN = "torchport.server.worker"


class _OwnLogger(logging.Logger):
    """A logger that cannot be disabled."""

    disabled = property(lambda self: False, lambda self, value: None)


class WorkerLog(logging.Handler):
    """Sends records to the front by `send`, or prints them."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__()
        self._send, self._pid = send, os.getpid()
        self._model, self._slot, self._requests = "", -1, list[str]()
        self._print = logging.StreamHandler(sys.stderr)
        self._print.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def install(self) -> None:
        """Make this the handler of all logs of the process, and of exceptions that nobody catches."""
        root = logging.getLogger()
        root.handlers[:] = [self]
        root.setLevel(logging.INFO)
        sys.excepthook = self._uncaught
        threading.excepthook = lambda given: (
            self._uncaught(given.exc_type, given.exc_value, given.exc_traceback)
            if given.exc_value is not None
            else None
        )
        # A handler may configure logging as it likes, and disable what was there: not the worker's own log.
        logging.setLoggerClass(_OwnLogger)
        for name in (OWN, *(f"{OWN}.{module}" for module in ("model", "answers", "metrics"))):
            logging.getLogger(name)
        logging.setLoggerClass(logging.Logger)
        own = logging.getLogger(OWN)
        own.handlers[:], own.propagate = [self], False

    @contextmanager
    def at(self, model: str, slot: int, requests: Sequence[str] = ()) -> Iterator[None]:
        """Name the model and the requests that are worked on."""
        self._model, self._slot, self._requests = model, slot, [id for id in requests if id]
        try:
            yield
        finally:
            self._requests = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            requests = self._requests if record.thread == threading.main_thread().ident else []
            if (record.levelno < logging.WARNING and not record.exc_info) or os.getpid() != self._pid:
                if requests:
                    record = logging.makeLogRecord(record.__dict__)
                    record.msg = f"{record.getMessage()} [request {', '.join(requests)}]"
                    record.args = ()
                self._print.handle(record)
                return
            self._send(
                Logged(
                    slot=self._slot,
                    model=self._model,
                    level=min(max(record.levelno, logging.DEBUG), logging.CRITICAL),
                    message=_sendable(f"{record.name}: {record.getMessage()}"),
                    traceback=_sendable(_traceback_of(record)),
                    requests=requests,
                )
            )
        except SystemExit:
            raise
        except BaseException as err:
            # A message that cannot be made must not cost an answer. It may have a handler's values.
            text = f"a message of {record.name} cannot be made: {traceback_of(err, CALLS)}"
            self._print.handle(logging.makeLogRecord({"msg": text, "levelname": "ERROR", "name": OWN}))

    def _uncaught(
        self, kind: type[BaseException], err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt | SystemExit) or err is None:
            return
        logging.getLogger(OWN).error("nobody caught %s", kind.__name__, exc_info=(kind, err, trace))


def _traceback_of(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[1] is None:
        return record.stack_info or ""
    return traceback_of(record.exc_info[1], CALLS)


def _sendable(text: str) -> str:
    """The text as UTF-8 can have it, and not too long."""
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]}\n...\n{text[-MAX_TEXT // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode()
