"""Part F: servers of Python models that anyone can install, on three models.

part = measure(archives, Path(".cache/bench/F"), Effort())

Each in its own environment, in the configuration that its documentation recommends for many requests, and
with the better of batches and no batches. A contender that cannot be had here is named, and left out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.archives import Archives
from bench.contenders import CORES, Server, Start, bare_uvicorn, torchport_serve
from bench.environments import Environment, NotInstallable
from bench.errors import BenchmarkError
from bench.figures import Bars, Figure, Part
from bench.load import Measured, Question, ask, count
from bench.mean_magnitude import npy, rows_of
from bench.python_servers import Work, bentoml_server, litserve_server, mosec_server, ray_server
from bench.rounds import Effort, interleave, median_ms, per_second
from bench.trials import best, try_each

OURS, CONSTANT = "torchport serve", "a constant"
BENTOML = "BentoML"
RAY_NAMES = ("Ray Serve", "Ray Serve, HAProxy")
WARM_UP_S = 2
"""There is no Java here to warm up."""

TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model with its request, how many ask for it at once, and what must be answered."""

    work: Work
    archive: Path
    connections: int
    workers: int
    batch_size: int
    expected: str | float


def measure(archives: Archives, folder: Path, effort: Effort) -> Part:
    """The linear model over 64 connections, a tensor of 600 kB over 8, a photograph over 32.

    One thread for each worker; one worker for the first two, one a core for the photograph.

    Raises:
        BenchmarkError: a contender does not start, or answers something else.
    """
    effort = replace(effort, warm_up=min(effort.warm_up, WARM_UP_S))
    environments = dict(_environments())
    figures, charts, runs, chosen = [], [], {}, {}
    for said, task in _tasks(archives).items():
        found, configurations = _compete(task, environments, folder / task.work.kind, effort)
        figures += _figures(said, found)
        rate = {name: per_second(measured) for name, measured in found.items()}
        charts.append(Bars(title=f"F  {said}", unit="answers a second", bars=rate))
        runs |= {f"{said}: {name}": measured for name, measured in found.items()}
        chosen[said] = configurations
    title = "Servers that anyone can install"
    return Part(letter="F", title=title, figures=figures, charts=charts, runs=runs, settings=chosen)


def _environments() -> Iterator[tuple[str, Environment]]:
    for name in ("litserve", "bentoml", "ray"):
        try:
            yield name, Environment.made(name)
        except NotInstallable as err:
            print(f"F: without it: {err}")


def _tasks(archives: Archives) -> dict[str, Task]:
    rows = rows_of(1, 150_528)
    linear = Work(kind="linear", model=archives.linear_onnx, body=b"[4.0]", content_type="application/json")
    tensor = Work(
        kind="tensor", model=archives.mean_onnx, body=npy(rows), content_type="application/octet-stream"
    )
    picture = Work(
        kind="picture",
        model=archives.resnet_onnx,
        body=archives.photograph.read_bytes(),
        content_type="image/jpeg",
    )
    made = partial(Task, workers=1)
    return {
        "linear, 64 connections": made(
            work=linear, archive=archives.linear, connections=64, batch_size=32, expected=_line(archives)
        ),
        "600 kB tensor, 8 connections": made(
            work=tensor,
            archive=archives.mean,
            connections=8,
            batch_size=8,
            expected=float(np.abs(rows.astype(np.float64)).mean()),
        ),
        "ResNet-18 from JPEG, 32 connections": Task(
            work=picture,
            archive=archives.resnet,
            connections=32,
            workers=CORES,
            batch_size=8,
            expected="china",
        ),
    }


def _line(archives: Archives) -> float:
    import torchport

    with torchport.load(archives.linear) as model:
        return float(model.predict([4.0])[0])


def _starts(
    task: Task, environments: Mapping[str, Environment], folder: Path
) -> dict[str, Mapping[str, Start]]:
    """By contender, then by configuration."""
    workers = {"minWorkers": task.workers, "maxWorkers": task.workers}
    ours = partial(torchport_serve, task.archive, folder / "torchport", **workers)
    sizes = (1, task.batch_size)
    found: dict[str, Mapping[str, Start]] = {
        OURS: {f"batch size {size}": partial(ours, batchSize=size) for size in sizes},
        "mosec": _sized(partial(mosec_server, task.work, workers=task.workers), sizes),
    }
    servers: dict[str, tuple[str, Callable[..., Any]]] = {
        "LitServe": ("litserve", litserve_server),
        BENTOML: ("bentoml", bentoml_server),
        RAY_NAMES[0]: ("ray", ray_server),
        RAY_NAMES[1]: ("ray", partial(ray_server, haproxy=True)),
    }
    for name, (environment, start) in servers.items():
        if environment in environments:
            bound = partial(start, environments[environment], _work(task, name), workers=task.workers)
            # BentoML's batches are of lists, and files come one by one.
            alone = name == BENTOML and task.work.kind != "linear"
            found[name] = _sized(bound, sizes[:1] if alone else sizes)
    return found


def _sized(start: Callable[..., Any], sizes: tuple[int, ...]) -> dict[str, Start]:
    return {f"batch size {size}": partial(start, batch_size=size) for size in sizes}


def _compete(
    task: Task, environments: Mapping[str, Environment], folder: Path, effort: Effort
) -> tuple[dict[str, list[Measured]], dict[str, Any]]:
    """Trials of each alone; then all at once, the others idle while one is measured."""
    starts = _starts(task, environments, folder)
    tried = {
        name: try_each(found, {"many": partial(_load, task, name)}, effort) for name, found in starts.items()
    }
    chosen = {name: best(found, "many", lambda run: run.per_second) for name, found in tried.items()}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(starts[name][chosen[name]]()) for name in starts}
        for name, server in servers.items():
            _require_answer(name, server, task)
        servers[CONSTANT] = stack.enter_context(bare_uvicorn())
        runs = interleave(
            {name: partial(_load, task, name, server) for name, server in servers.items()}, effort
        )
    return runs, {"chosen": chosen, "trials": tried}


def _work(task: Task, name: str) -> Work:
    """The task's work as a contender wants it asked for: BentoML takes rows of JSON in a list."""
    if name == BENTOML and task.work.kind == "linear":
        return replace(task.work, body=b"[" + task.work.body + b"]")
    return task.work


def _question(task: Task, name: str, server: Server) -> Question:
    work = _work(task, name)
    return server.question(work.body, work.content_type)


def _load(task: Task, name: str, server: Server, seconds: int) -> Measured:
    return count(_question(task, name, server), connections=task.connections, seconds=seconds)


def _figures(what: str, runs: Mapping[str, list[Measured]]) -> list[Figure]:
    """Without targets: they are there to be read."""
    return [
        Figure(
            part="F",
            what=what,
            unit=unit,
            measured=of(runs[OURS]),
            rival=rival,
            against=of(runs[rival]),
            failed=sum(run.failed for name in (OURS, rival) for run in runs[name]),
        )
        for unit, of in (("1/s", per_second), ("ms", median_ms))
        for rival in runs
        if rival != OURS
    ]


def _require_answer(name: str, server: Server, task: Task) -> None:
    content = ask(_question(task, name, server))
    try:
        answer = np.load(io.BytesIO(content)) if content.startswith(b"\x93NUMPY") else json.loads(content)
        right = is_right(answer, task.expected)
    except (ValueError, TypeError) as err:
        raise BenchmarkError(f"{name} answers {content[:200]!r}, which is not read: {err}") from err
    if not right:
        raise BenchmarkError(f"{name} answers {content[:200]!r}, {task.expected} is expected")


def is_right(answer: Any, expected: str | float) -> bool:
    """Whether an answer is the expected number, alone in any nesting of lists, or names the class first."""
    if isinstance(expected, str):
        return isinstance(answer, dict) and max(answer, key=answer.__getitem__) == expected
    numbers = np.ravel(answer)
    return len(numbers) == 1 and abs(float(numbers[0]) - expected) <= TOLERANCE
