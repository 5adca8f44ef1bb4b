"""One gRPC call made again and again by h2load, and what that gives.

call = Call(target="127.0.0.1:7070", method="/inference.GRPCInferenceService/ModelInfer", message=bytes)
answer = invoke(call)                                # The answer's message.
count_calls(call, connections=8, seconds=4)          # Measured(per_second=..., median_ms=..., ...)

One stream a connection, so that a connection means the same as with HTTP/1.1. The load is h2load's and not
a client library's: in Python the client would cost more than the server.
"""

from __future__ import annotations

import re
import shutil
import statistics
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from bench.errors import BenchmarkError
from bench.load import NO_ANSWER, Measured, run_load

TIMEOUT_S = 60.0
PREFIX_BYTES = 5
"""Of each message: whether it is compressed, and its length."""

MAX_MESSAGE = ("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)

_FINISHED = re.compile(r"finished in [\d.]+\w+, ([\d.]+) req/s")
_REQUESTS = re.compile(
    r"requests: .* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout"
)
_DATA = re.compile(r"traffic: .*\((\d+)\) data$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call with one message and one answer. `pid` is that of the server, `target` its host and port."""

    target: str
    method: str
    message: bytes
    pid: int | None = None


def require_h2load() -> str:
    """The path of h2load.

    Raises:
        BenchmarkError: it is not installed.
    """
    path = shutil.which("h2load")
    if path is None:
        raise BenchmarkError("h2load makes gRPC's load, and is not here: apt-get install nghttp2-client")
    return path


def invoke(call: Call, timeout: float = TIMEOUT_S) -> bytes:
    """The answer to one call, as bytes.

    Raises:
        BenchmarkError: another status than OK.
    """
    with grpc.insecure_channel(call.target, options=MAX_MESSAGE) as channel:
        try:
            answer: bytes = channel.unary_unary(call.method)(
                call.message, timeout=timeout, wait_for_ready=True
            )
        except grpc.RpcError as err:
            raise BenchmarkError(f"{call.target}{call.method}: {err.code()}: {err.details()}") from err
    return answer


def count_calls(call: Call, *, connections: int, seconds: int) -> Measured:
    """Call over so many connections at once, each again as soon as it has its answer.

    Raises:
        BenchmarkError: h2load is missing or fails.
    """
    try:
        answer = invoke(call)
    except BenchmarkError:
        return NO_ANSWER
    with tempfile.TemporaryDirectory(prefix="bench-call-") as name:
        body, log = Path(name) / "body", Path(name) / "log"
        body.write_bytes(struct.pack(">BI", 0, len(call.message)) + call.message)
        command = [require_h2load(), "-t1", f"-c{connections}", "-m1", f"-D{seconds}", f"--data={body}"]
        command += [f"--log-file={log}", "-H", "content-type: application/grpc", "-H", "te: trailers"]
        done, usage = run_load([*command, f"http://{call.target}{call.method}"], call.pid)
        times = milliseconds(log.read_text()) if log.is_file() else []
    per_second, errors = figures(done.stdout, PREFIX_BYTES + len(answer))
    if not times:
        errors["no answer"] = connections
    return Measured(
        per_second=per_second,
        median_ms=statistics.median(times) if times else 0.0,
        p99_ms=times[int(len(times) * 0.99)] if times else 0.0,
        worst_ms=times[-1] if times else 0.0,
        errors=errors,
        usage=usage,
    )


def figures(said: str, answer_bytes: int) -> tuple[float, dict[str, int]]:
    """Answers a second and the calls that failed by kind, from what h2load prints.

    A gRPC error is an HTTP answer of status 200 without a message, which h2load takes for a success. So
    the messages are counted by their bytes; `answer_bytes` are those of one.

    Raises:
        BenchmarkError: these are no figures.
    """
    finished, requests, data = _FINISHED.search(said), _REQUESTS.search(said), _DATA.search(said)
    if finished is None or requests is None or data is None:
        raise BenchmarkError(f"h2load failed: {said[-400:]}")
    done, succeeded, *others = (int(number) for number in requests.groups())
    errors = dict(zip(("failed", "errored", "timeout"), others, strict=True))
    errors["status"] = done - succeeded
    errors["no message"] = max(0, succeeded - int(data[1]) // answer_bytes)
    return float(finished[1]), {kind: number for kind, number in errors.items() if number}


def milliseconds(log: str) -> Sequence[float]:
    """How long each call took that HTTP calls a success, from h2load's log, ascending."""
    lines = (line.split("\t") for line in log.splitlines())
    return sorted(int(took) / 1e3 for _, status, took in lines if status == "200")
