"""One request asked again and again by wrk, and what that gives.

question = Question(url="http://127.0.0.1:8080/predictions/linear", body=b"[4.0]")
ask(question)                                     # b"[14.17]"
load(question, connections=64, seconds=4)         # Measured(per_second=..., median_ms=..., ...)
count(question, connections=64, seconds=4).errors # {"status": 12}, where `load` raises
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.errors import BenchmarkError
from bench.usage import Snapshot, Usage

SCRIPT = Path(__file__).parent / "post.lua"
POLL_S = 0.01

MAX_SECONDS = 30
"""Seconds from which on a run without an answer is not made longer."""

NOTHING = "no answer"
"""The error of a run in which no request was answered."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A POST request. With `pid`, that of the server, a run tells who used the processor."""

    url: str
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    pid: int | None = None

    @property
    def all_headers(self) -> dict[str, str]:
        return {"Content-Type": self.content_type, **self.headers}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run: answers a second, and latencies in milliseconds.

    `errors` are the requests that failed, by kind: with one of them the run is no measurement.
    """

    per_second: float
    median_ms: float
    p99_ms: float
    worst_ms: float
    errors: Mapping[str, int] = field(default_factory=dict)
    usage: Usage | None = None

    @property
    def failed(self) -> int:
        return sum(self.errors.values())


NO_ANSWER = Measured(per_second=0.0, median_ms=0.0, p99_ms=0.0, worst_ms=0.0, errors={"alone": 1})
"""A run that was not begun, because a request that went ahead by itself failed."""


def require_wrk() -> str:
    """The path of wrk.

    Raises:
        BenchmarkError: it is not installed.
    """
    path = shutil.which("wrk")
    if path is None:
        raise BenchmarkError("wrk makes the load, and is not here: apt-get install wrk")
    return path


def load(question: Question, *, connections: int, seconds: int) -> Measured:
    """Ask over so many connections at once, each again as soon as it has its answer.

    One request goes ahead by itself: its answer comes when what an earlier load left in a queue is done.
    Where no answer comes in the time, it is doubled, up to `MAX_SECONDS`.

    Raises:
        BenchmarkError: wrk is missing, or a request failed: figures of a server that refuses are worthless.
        OSError, http.client.HTTPException: no server there.
    """
    ask(question)
    measured = _run_wrk(question, connections, seconds)
    if measured.errors:
        raise BenchmarkError(f"{question.url}: requests failed: {dict(measured.errors)}")
    return measured


def count(question: Question, *, connections: int, seconds: int) -> Measured:
    """The same, but requests that fail are counted, and do not end the benchmark.

    Raises:
        BenchmarkError: wrk is missing or fails.
    """
    try:
        ask(question)
    except (BenchmarkError, OSError, http.client.HTTPException):
        return NO_ANSWER
    return _run_wrk(question, connections, seconds)


def _run_wrk(question: Question, connections: int, seconds: int) -> Measured:
    measured = _run_once(question, connections, seconds)
    while set(measured.errors) == {NOTHING} and seconds < MAX_SECONDS:
        seconds *= 2
        measured = _run_once(question, connections, seconds)
    return measured


def _run_once(question: Question, connections: int, seconds: int) -> Measured:
    with tempfile.NamedTemporaryFile(prefix="bench-body-") as body:
        body.write(question.body)
        body.flush()
        command = [require_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
        command += ["-s", str(SCRIPT), question.url, "--", body.name]
        command += [f"{name}: {value}" for name, value in question.all_headers.items()]
        done, usage = run_load(command, question.pid)
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as err:
        raise BenchmarkError(f"wrk failed on {question.url}: {(done.stderr or done.stdout)[-400:]}") from err
    errors = {kind: number for kind, number in said["errors"].items() if number}
    if not said["requests"]:
        errors[NOTHING] = connections
    return Measured(
        per_second=said["requests"] / said["microseconds"] * 1e6,
        median_ms=said["median"] / 1e3,
        p99_ms=said["p99"] / 1e3,
        worst_ms=said["worst"] / 1e3,
        errors=errors,
        usage=usage,
    )


def run_load(command: list[str], pid: int | None) -> tuple[subprocess.CompletedProcess[str], Usage | None]:
    """Run a load generator to its end; who used the processor meanwhile, if the server's `pid` is known."""
    before = None if pid is None else Snapshot.of(pid)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, None if before is None or pid is None else Snapshot.of(pid).since(before)


def ask(question: Question, timeout: float = 60.0) -> bytes:
    """The body of the answer to one request.

    Raises:
        BenchmarkError: another status than 200.
        OSError, http.client.HTTPException: no answer.
    """
    parts = urlsplit(question.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("POST", parts.path, question.body, question.all_headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise BenchmarkError(f"{question.url} answers {answer.status}: {content[:200]!r}")
        return content
    finally:
        connection.close()


def until_answered(question: Question, timeout: float, stop: Callable[[], bool] = lambda: False) -> float:
    """Ask until there is an answer; the clock's reading then (`time.perf_counter`).

    Raises:
        BenchmarkError: none within `timeout` seconds, or `stop` says to stop before.
    """
    deadline = time.perf_counter() + timeout
    reason: Exception | None = None
    while time.perf_counter() < deadline and not stop():
        try:
            ask(question, timeout=timeout)
            return time.perf_counter()
        except (OSError, http.client.HTTPException, BenchmarkError) as err:
            reason = err
        time.sleep(POLL_S)
    raise BenchmarkError(f"{question.url}: no answer: {reason}")
