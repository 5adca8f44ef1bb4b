"""Part C: how long from the start to the first answer, and how much memory it takes to give one.

part = measure(archives, Path(".cache/bench/C"), Effort())
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench.archives import Archives
from bench.contenders import (
    READY_TIMEOUT_S,
    Start,
    free_port,
    torchport_serve,
    torchserve_server,
)
from bench.figures import Bars, Figure, Part, Target
from bench.load import Question, load, until_answered
from bench.memory import Memory, family, memory_of
from bench.python_servers import Work, mosec_server
from bench.rounds import Effort, Spread

CONNECTIONS = 32
OURS, TORCHSERVE, MOSEC = "torchport serve", "TorchServe", "mosec"
LINEAR, RESNET = "linear", "ResNet-18"
_Asked = tuple[str, bytes, str]
"""Path, body and content type of a request."""


def measure(archives: Archives, folder: Path, effort: Effort) -> Part:
    """Starts are counted from before the process is made to the first 200 on a prediction, asked for every
    10 ms; then memory, after requests over 32 connections.

    Raises:
        BenchmarkError: a contender gives no answer.
    """
    starts = _starts(archives, folder)
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(effort.rounds):
        for name, (start, asked) in starts.items():
            seconds[name].append(seconds_to_answer(start, asked))
    took = {name: Spread.of(values) for name, values in seconds.items()}
    figures = []
    for model, rival in ((LINEAR, f"{TORCHSERVE}, {LINEAR}"), (RESNET, f"{TORCHSERVE}, {RESNET}")):
        what = f"first answer, {model} by ONNX Runtime"
        ours = took[f"{OURS}, {model}"]
        figures.append(Figure(part="C", what=what, unit="s", measured=ours, target=Target("under", 1.5)))
        figures.append(Figure(part="C", what=what, unit="s", measured=ours, rival=rival, against=took[rival]))
    workers: dict[str, Memory] = {}
    servers: dict[str, Memory] = {}
    for name, model in ((OURS, "resnet18_224"), (TORCHSERVE, "resnet18_stock")):
        start, (_, body, content_type) = starts[f"{name}, {RESNET}"]
        with start() as server:
            load(server.question(body, content_type), connections=CONNECTIONS, seconds=effort.seconds)
            workers[name] = memory_of(server.worker_pids(model))
            servers[name] = memory_of(family(server.pid))
    figures += _memory_figures(workers, servers)
    held = {
        f"{name}\n{what}": Spread.of([memory.rss_mb])
        for what, found in (("worker", workers), ("all of it", servers))
        for name, memory in found.items()
    }
    return Part(
        letter="C",
        title="First answer and memory",
        figures=figures,
        charts=[
            Bars(title="C  from start to first answer", unit="seconds", bars=took),
            Bars(title="C  memory with ResNet-18", unit="resident MB", bars=held),
        ],
        settings={"starts": seconds, "workers": workers, "servers": servers},
    )


def seconds_to_answer(start: Start, asked: _Asked) -> float:
    """From before the contender is started to its first answer.

    Raises:
        BenchmarkError: there is none, TorchportError: it cannot be started.
    """
    path, body, content_type = asked
    port, stop = free_port(), threading.Event()
    question = Question(url=f"http://127.0.0.1:{port}{path}", body=body, content_type=content_type)
    with ThreadPoolExecutor(1) as executor:
        began = time.perf_counter()
        answered = executor.submit(until_answered, question, READY_TIMEOUT_S, stop.is_set)
        try:
            with start(port=port):
                return answered.result() - began
        finally:
            stop.set()


def _starts(archives: Archives, folder: Path) -> dict[str, tuple[Start, _Asked]]:
    number = ("/predictions/linear", b"[4.0]", "application/json")
    picture = archives.photograph.read_bytes(), "image/jpeg"
    ours, theirs = folder / "torchport", folder / "torchserve"
    return {
        f"{OURS}, {LINEAR}": (partial(torchport_serve, archives.linear, ours), number),
        f"{OURS}, {RESNET}": (
            partial(torchport_serve, archives.resnet, ours),
            ("/predictions/resnet18_224", *picture),
        ),
        f"{TORCHSERVE}, {LINEAR}": (partial(torchserve_server, archives.linear, theirs), number),
        f"{TORCHSERVE}, {RESNET}": (
            partial(torchserve_server, archives.stock, theirs),
            ("/predictions/resnet18_stock", *picture),
        ),
        f"{MOSEC}, {LINEAR}": (
            partial(
                mosec_server,
                Work(kind="linear", model=archives.linear_onnx, body=number[1], content_type=number[2]),
                batch_size=32,
            ),
            ("/inference", number[1], number[2]),
        ),
    }


def _memory_figures(workers: dict[str, Memory], servers: dict[str, Memory]) -> list[Figure]:
    """The worker's three sizes, the first with its target, and the whole server's."""
    found = []
    for kind, target in (("rss_mb", Target("under", 300.0)), ("pss_mb", None), ("uss_mb", None)):
        ours, theirs = (Spread.of([getattr(workers[name], kind)]) for name in (OURS, TORCHSERVE))
        what = f"ResNet-18 worker, {kind[:3].upper()}"
        if target is not None:
            found.append(Figure(part="C", what=what, unit="MB", measured=ours, target=target))
        found.append(Figure(part="C", what=what, unit="MB", measured=ours, rival=TORCHSERVE, against=theirs))
    whole = (Spread.of([servers[name].rss_mb]) for name in (OURS, TORCHSERVE))
    ours, theirs = whole
    what = "server and worker, RSS"
    found.append(Figure(part="C", what=what, unit="MB", measured=ours, rival=TORCHSERVE, against=theirs))
    return found
