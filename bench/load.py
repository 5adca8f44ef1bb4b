"""One request asked again and again by wrk, and what that gives.

question = Question(url="http://127.0.0.1:8080/predictions/linear", body=b"[4.0]")
ask(question)                                    # b"[14.17]"
load(question, connections=64, seconds=4)      # Measured(per_second=..., median_ms=..., ...)
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from bench.errors import BenchmarkError

SCRIPT = Path(__file__).parent / "post.lua"
POLL_S = 0.01

MAX_SECONDS = 30
"""Seconds from which on a run without an answer is not made longer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A POST request."""

    url: str
    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run: answers a second, and latencies in milliseconds."""

    per_second: float
    median_ms: float
    p99_ms: float
    worst_ms: float


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
    said = _run_wrk(question, connections, seconds)
    while not said["requests"] and not any(said["errors"].values()) and seconds < MAX_SECONDS:
        seconds *= 2
        said = _run_wrk(question, connections, seconds)
    errors = {kind: count for kind, count in said["errors"].items() if count}
    if errors or not said["requests"]:
        raise BenchmarkError(f"{question.url}: of {said['requests']} requests failed {errors or 'all'}")
    return Measured(
        per_second=said["requests"] / said["microseconds"] * 1e6,
        median_ms=said["median"] / 1e3,
        p99_ms=said["p99"] / 1e3,
        worst_ms=said["worst"] / 1e3,
    )


def _run_wrk(question: Question, connections: int, seconds: int) -> dict[str, Any]:
    """What `post.lua` says of one run."""
    with tempfile.NamedTemporaryFile(prefix="bench-body-") as body:
        body.write(question.body)
        body.flush()
        command = [require_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
        command += ["-s", str(SCRIPT), question.url, "--", body.name, question.content_type]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return cast(dict[str, Any], json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError) as err:
        raise BenchmarkError(f"wrk failed on {question.url}: {(done.stderr or done.stdout)[-400:]}") from err


def ask(question: Question, timeout: float = 60.0) -> bytes:
    """The body of the answer to one request.

    Raises:
        BenchmarkError: another status than 200.
        OSError, http.client.HTTPException: no answer.
    """
    parts = urlsplit(question.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("POST", parts.path, question.body, {"Content-Type": question.content_type})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise BenchmarkError(f"{question.url} answers {answer.status}: {content[:200]!r}")
        return content
    finally:
        connection.close()


def until_answered(question: Question, timeout: float, stop: threading.Event | None = None) -> float:
    """Ask until there is an answer; the clock's reading then (`time.perf_counter`).

    Raises:
        BenchmarkError: none within `timeout` seconds, or `stop` was set before.
    """
    deadline = time.perf_counter() + timeout
    reason: Exception | None = None
    while time.perf_counter() < deadline and not (stop is not None and stop.is_set()):
        try:
            ask(question, timeout=timeout)
            return time.perf_counter()
        except (OSError, http.client.HTTPException, BenchmarkError) as err:
            reason = err
        time.sleep(POLL_S)
    raise BenchmarkError(f"{question.url}: no answer: {reason}")
