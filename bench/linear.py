"""Part A: the linear model, where all that costs is the serving.

part = measure(archives, Path(".cache/bench/A"), Effort())
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torchport
from bench.archives import Archives
from bench.contenders import Server, Start, bare_uvicorn, torchport_serve, torchserve_server
from bench.errors import BenchmarkError
from bench.figures import Bars, Figure, Part, Target
from bench.load import Measured, Question, ask, load
from bench.python_servers import Work, mosec_server
from bench.rounds import Effort, Spread, interleave, median_ms, per_second
from bench.trials import best, try_each

BODY = b"[4.0]"
MANY = 64
BATCH_SIZE = 32
TOLERANCE = 1e-5
"""The same graph by the same runtime: only a batch's size may change the last bits."""

OURS, TORCHSERVE, MOSEC, BARE = "torchport serve", "TorchServe", "mosec", "uvicorn, a constant"
UNBATCHED = "TorchServe, batch size 1"
MANY_TARGETS = {
    TORCHSERVE: Target("at least", 5.0),
    UNBATCHED: None,
    MOSEC: Target("more than", 1.0),
    BARE: Target("at least", 0.5),
}
ONE_TARGETS = {TORCHSERVE: Target("at most", 0.2), UNBATCHED: None, MOSEC: None, BARE: None}


def measure(archives: Archives, folder: Path, effort: Effort) -> Part:
    """One worker each and the same ONNX file, over 64 connections and over one.

    TorchServe has the same archive; and, to be looked at, the same without batches, which is its own default
    and spares a lone request the wait for others. mosec has the better of its default wait and a short one,
    and for a lone request no batches if that is better.

    Raises:
        BenchmarkError: a contender does not start, or answers another number.
    """
    with torchport.load(archives.linear) as model:
        expected = float(model.predict(json.loads(BODY))[0])
    loads = {"many": partial(_load, MANY), "one": partial(_load, 1)}
    mosec = _mosec(archives)
    tried = try_each(mosec, loads, effort)
    chosen = {
        MANY: best(tried, "many", lambda measured: measured.per_second),
        1: best(tried, "one", lambda measured: -measured.median_ms),
    }
    crowd, alone = (
        _compete(archives, folder, effort, expected, mosec[chosen[connections]], connections)
        for connections in (MANY, 1)
    )
    rate = {name: per_second(runs) for name, runs in crowd.items()}
    latency = {name: median_ms(runs) for name, runs in alone.items()}
    return Part(
        letter="A",
        title="The linear model",
        figures=[
            *_figures(f"linear, {MANY} connections, one worker", "1/s", rate, MANY_TARGETS),
            *_figures("linear, one connection, median latency", "ms", latency, ONE_TARGETS),
        ],
        charts=[
            Bars(title=f"A  linear model, {MANY} connections", unit="answers a second", bars=rate),
            Bars(title="A  linear model, one connection", unit="median latency, ms", bars=latency),
        ],
        runs={
            **{f"{name}, {MANY} connections": runs for name, runs in crowd.items()},
            **{f"{name}, one connection": runs for name, runs in alone.items()},
        },
        settings={"batch_size": BATCH_SIZE, "mosec": {"chosen": chosen, "trials": tried}},
    )


def _figures(
    what: str, unit: str, measured: Mapping[str, Spread], targets: Mapping[str, Target | None]
) -> list[Figure]:
    return [
        Figure(
            part="A",
            what=what,
            unit=unit,
            measured=measured[OURS],
            rival=rival,
            against=measured[rival],
            target=target,
        )
        for rival, target in targets.items()
    ]


def _load(connections: int, server: Server, seconds: int) -> Measured:
    return load(server.question(BODY), connections=connections, seconds=seconds)


def _mosec(archives: Archives) -> dict[str, Start]:
    work = Work(kind="linear", model=archives.linear_onnx, body=BODY, content_type="application/json")
    start = partial(mosec_server, work)
    return {
        "batch size 32, wait 10 ms": partial(start, batch_size=BATCH_SIZE, wait_ms=10),
        "batch size 32, wait 1 ms": partial(start, batch_size=BATCH_SIZE, wait_ms=1),
        "batch size 1": partial(start, batch_size=1, wait_ms=1),
    }


def _compete(
    archives: Archives, folder: Path, effort: Effort, expected: float, mosec: Start, connections: int
) -> dict[str, list[Measured]]:
    """All of them up at once, the others idle while one is measured."""
    linear = archives.linear
    starts: dict[str, Start] = {
        OURS: partial(torchport_serve, linear, folder / "torchport", batchSize=BATCH_SIZE),
        TORCHSERVE: partial(torchserve_server, linear, folder / "torchserve", batchSize=BATCH_SIZE),
        UNBATCHED: partial(torchserve_server, linear, folder / "unbatched", batchSize=1),
        MOSEC: mosec,
    }
    with ExitStack() as stack:
        servers = {name: stack.enter_context(start()) for name, start in starts.items()}
        for name, server in servers.items():
            _require_answer(name, server.question(BODY), expected)
        servers[BARE] = stack.enter_context(bare_uvicorn())
        return interleave(
            {name: partial(_load, connections, server) for name, server in servers.items()}, effort
        )


def _require_answer(name: str, question: Question, expected: float) -> None:
    answer = json.loads(ask(question))
    if not (isinstance(answer, list) and len(answer) == 1 and abs(answer[0] - expected) <= TOLERANCE):
        raise BenchmarkError(f"{name} answers {answer}, the model {expected}: they do not do the same work")
