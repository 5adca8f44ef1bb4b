"""Part D: what many models, many connections, large bodies and large batches cost.

    part = measure(archives, Path(".cache/bench/D"), Effort())

Nothing here is held against another server: a figure is held against its own neighbour, and may not fall
off a cliff.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import requests

from bench.archives import Archives
from bench.contenders import Server, torchport_serve
from bench.errors import BenchmarkError
from bench.figures import Bars, Figure, Part, Target
from bench.load import Measured, Question, load
from bench.memory import memory_of
from bench.rounds import Effort, Measure, Spread, interleave, median_ms, per_second

MODELS, IDLE, CONNECTIONS = 100, 1000, 64
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
BODY_SIZES = {"10 kB": 10_000, "100 kB": 100_000, "1 MB": 1_000_000, "10 MB": 10_000_000}
BODY_CONNECTIONS = 8
BODY = b"[4.0]"
NO_CLIFF = Target("at least", 0.8)
"""Of the neighbour's: what a machine's own unrest does is less, what a mistake in the code does is more."""
NO_CLIFF_OF_BYTES = Target("at least", 0.5)
"""Large bodies fit into no cache, and go through the memory each time that they are handed on."""
WARM_UP_S = 2
"""There is no Java here to warm up."""

MANAGEMENT = {"enable_model_api": "true"}


def measure(archives: Archives, folder: Path, effort: Effort) -> Part:
    """Four tables, each of a server of its own.

    Raises:
        BenchmarkError: a request fails, a model cannot be registered.
    """
    effort = replace(effort, warm_up=min(effort.warm_up, WARM_UP_S))
    parts = [
        many_models(archives, folder / "models", effort),
        idle_connections(archives, folder / "idle", effort),
        large_bodies(archives, folder / "bodies", effort),
        batch_sizes(archives, folder / "batches", effort),
    ]
    return Part(
        letter="D",
        title="Cost of scale",
        figures=[figure for part in parts for figure in part.figures],
        charts=[chart for part in parts for chart in part.charts],
        runs={f"{part.title}: {name}": runs for part in parts for name, runs in part.runs.items()},
        settings={part.title: part.settings for part in parts},
    )


def many_models(archives: Archives, folder: Path, effort: Effort) -> Part:
    """One of 100 models, a worker each, beside one that is alone."""
    linear = archives.linear
    with (
        torchport_serve(linear, folder / "one") as lone,
        torchport_serve(linear, folder / "hundred", settings=MANAGEMENT) as full,
    ):
        before, began = memory_of([full.pid]), time.perf_counter()
        for number in range(1, MODELS):
            register(full, linear.name, model_name=f"linear_{number}", initial_workers=1)
        registering = time.perf_counter() - began
        runs = interleave({"one model": _asking(lone), f"one of {MODELS} models": _asking(full)}, effort)
        (worker,) = full.worker_pids("linear_1")
        held, front = memory_of([worker]), memory_of([full.pid])
    rate = {name: per_second(found) for name, found in runs.items()}
    delay = {name: median_ms(found) for name, found in runs.items()}
    alone, among = rate
    each = Spread.of([registering / (MODELS - 1)])
    per_model = Spread.of([(front.rss_mb - before.rss_mb) / (MODELS - 1)])
    return Part(
        letter="D",
        title=f"{MODELS} models",
        figures=[
            _figure(
                f"{MODELS} models, answers of one", "1/s", rate[among], "one model", rate[alone], NO_CLIFF
            ),
            _figure(f"{MODELS} models, latency of one", "ms", delay[among], "one model", delay[alone]),
            _figure(f"{MODELS} models, registering one", "s", each),
            _figure("an idle worker, RSS", "MB", Spread.of([held.rss_mb])),
            _figure("an idle worker, PSS", "MB", Spread.of([held.pss_mb])),
            _figure("the front, RSS per model", "MB", per_model),
        ],
        charts=[Bars(title=f"D  one of {MODELS} models", unit="answers a second", bars=rate)],
        runs=runs,
    )


def idle_connections(archives: Archives, folder: Path, effort: Effort) -> Part:
    """The same server with 1,000 connections that do nothing, and without."""
    with torchport_serve(archives.linear, folder) as server:
        undisturbed = _asking(server)
        undisturbed(effort.warm_up)
        before = memory_of([server.pid])
        with _connections(server.url, IDLE):
            each = (memory_of([server.pid]).rss_mb - before.rss_mb) * 1000 / IDLE

        def disturbed(seconds: int) -> Measured:
            with _connections(server.url, IDLE):
                return undisturbed(seconds)

        names = "none", f"{IDLE:,} idle"
        runs = interleave(dict(zip(names, (undisturbed, disturbed), strict=True)), effort)
    rate = {name: per_second(found) for name, found in runs.items()}
    delay = {name: median_ms(found) for name, found in runs.items()}
    without, beside = names
    what = f"{IDLE:,} idle connections"
    return Part(
        letter="D",
        title=what,
        figures=[
            _figure(f"{what}, answers", "1/s", rate[beside], "none", rate[without], NO_CLIFF),
            _figure(f"{what}, latency", "ms", delay[beside], "none", delay[without]),
            _figure(f"{what}, RSS of one", "kB", Spread.of([max(0.0, each)])),
        ],
        charts=[Bars(title="D  idle connections beside 64 busy ones", unit="answers a second", bars=rate)],
        runs=runs,
    )


def large_bodies(archives: Archives, folder: Path, effort: Effort) -> Part:
    """Bodies of growing size to a handler that looks at their length only."""
    limit = {"max_request_size": str(2 * max(BODY_SIZES.values()))}
    with torchport_serve(archives.length, folder, settings=limit) as server:
        measures: dict[str, Measure] = {
            name: partial(_load, server.question(bytes(size), "application/octet-stream"), BODY_CONNECTIONS)
            for name, size in BODY_SIZES.items()
        }
        runs = interleave(measures, effort)
    rate = {
        name: Spread.of(run.per_second * BODY_SIZES[name] / 1e6 for run in found)
        for name, found in runs.items()
    }
    delay = {name: median_ms(found) for name, found in runs.items()}
    figures = [
        _figure(f"bodies of {name}, bytes", "MB/s", rate[name], smaller, rate[smaller], NO_CLIFF_OF_BYTES)
        if smaller
        else _figure(f"bodies of {name}, bytes", "MB/s", rate[name])
        for smaller, name in zip(["", *rate], rate, strict=False)
    ]
    figures += [_figure(f"bodies of {name}, latency", "ms", spread) for name, spread in delay.items()]
    return Part(
        letter="D",
        title="bodies",
        figures=figures,
        charts=[Bars(title="D  size of a body", unit="MB a second", bars=rate, line=True)],
        runs=runs,
    )


def batch_sizes(archives: Archives, folder: Path, effort: Effort) -> Part:
    """The same model, registered with one batch size after another."""
    with torchport_serve(archives.linear, folder, settings=MANAGEMENT | {"load_models": "none"}) as server:
        measures: dict[str, Measure] = {}
        for size in BATCH_SIZES:
            name = f"linear_b{size}"
            register(server, archives.linear.name, model_name=name, batch_size=size, initial_workers=1)
            url = server.url.rpartition("/")[0] + f"/{name}"
            measures[str(size)] = partial(_load, replace(server.question(BODY), url=url), CONNECTIONS)
        runs = interleave(measures, effort)
    rate = {name: per_second(found) for name, found in runs.items()}
    return Part(
        letter="D",
        title="batch sizes",
        figures=[
            _figure(f"batch size {name}", "1/s", rate[name], f"batch size {smaller}", rate[smaller], NO_CLIFF)
            if smaller
            else _figure(f"batch size {name}", "1/s", rate[name])
            for smaller, name in zip(["", *rate], rate, strict=False)
        ],
        charts=[Bars(title="D  batch size", unit="answers a second", bars=rate, line=True)],
        runs=runs,
    )


def register(server: Server, archive: str, **asked: str | int) -> None:
    """Register an archive of the store by the management API, and wait for its workers.

    Raises:
        BenchmarkError: the server refuses.
    """
    if server.client is None:
        raise BenchmarkError(f"{server.url} has no management API")
    answer = requests.post(
        f"{server.client.management_url}/models", params={"url": archive, **asked}, timeout=120
    )
    if answer.status_code != 200:
        raise BenchmarkError(f"registering {archive} as {asked} is refused: {answer.text[:400]}")


def _asking(server: Server) -> Measure:
    return partial(_load, server.question(BODY), CONNECTIONS)


def _load(question: Question, connections: int, seconds: int) -> Measured:
    return load(question, connections=connections, seconds=seconds)


def _figure(
    what: str,
    unit: str,
    measured: Spread,
    rival: str = "",
    against: Spread | None = None,
    target: Target | None = None,
) -> Figure:
    return Figure(
        part="D", what=what, unit=unit, measured=measured, rival=rival, against=against, target=target
    )


@contextmanager
def _connections(url: str, count: int) -> Iterator[None]:
    """So many connections that are open and do nothing, held by a process of their own."""
    parts = urlsplit(url)
    script = Path(__file__).parent / "idle_connections.py"
    command = [sys.executable, str(script), str(parts.hostname), str(parts.port), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise BenchmarkError(f"{count} connections cannot be opened to {url}")
        yield  # Leaving this closes the process's input, which ends it.
