"""Part B: ResNet-18 from JPEG bytes, where the model is what costs.

part = measure(archives, Path(".cache/bench/B"), Effort())
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.archives import Archives
from bench.contenders import CORES, Server, Start, torchport_serve, torchserve_server
from bench.errors import BenchmarkError
from bench.figures import Bars, Figure, Part, Target
from bench.load import Measured, ask, load
from bench.rounds import Effort, Measure, interleave, per_second
from bench.trials import best, try_each
from bench.usage import Snapshot

CONNECTIONS = 32
BATCH_SIZES = (1, 4, 8)
TOLERANCE = 1e-5
OURS = "torchport serve"
TORCHSERVE, BARE = "TorchServe image_classifier", "bare loop, one process"


def measure(archives: Archives, folder: Path, effort: Effort) -> Part:
    """torchport serve with one worker on all cores and with one worker a core, TorchServe's own handler on
    TorchScript with its best number of workers and batch size, and no server at all.

    Raises:
        BenchmarkError: a contender does not start, or sees something else in the picture.
    """
    picture = archives.photograph.read_bytes()
    put_load = partial(_load, picture)
    loads = {"many": put_load}
    tried = {
        f"{OURS}, one worker": try_each(_torchport(archives, folder, 1), loads, effort),
        f"{OURS}, {CORES} workers": try_each(_torchport(archives, folder, CORES), loads, effort),
        TORCHSERVE: try_each(_torchserve(archives, folder), loads, effort),
    }
    chosen = {
        name: best(found, "many", lambda measured: measured.per_second) for name, found in tried.items()
    }
    with ExitStack() as stack:
        measures: dict[str, Measure] = {}
        bare, label, probability = stack.enter_context(_bare_loop(archives))
        for workers, name in zip((1, CORES), tried, strict=False):
            start = _torchport(archives, folder / f"workers-{workers}", workers)[chosen[name]]
            server = stack.enter_context(start())
            _require_label(name, server, picture, label, probability)
            measures[name] = partial(put_load, server)
        stock = stack.enter_context(_torchserve(archives, folder)[chosen[TORCHSERVE]]())
        _require_label(TORCHSERVE, stock, picture, label)
        measures |= {TORCHSERVE: partial(put_load, stock), BARE: bare}
        runs = interleave(measures, effort)
    rate = {name: per_second(found) for name, found in runs.items()}
    ours = max(list(rate)[:2], key=lambda name: rate[name].median)
    other = next(name for name in list(rate)[:2] if name != ours)
    targets = {TORCHSERVE: Target("at least", 1.5), BARE: Target("at least", 0.85)}
    return Part(
        letter="B",
        title="ResNet-18 from JPEG bytes",
        figures=[
            Figure(
                part="B",
                what=f"ResNet-18, {CONNECTIONS} connections, {name.partition(', ')[2]} ({chosen[name]})",
                unit="1/s",
                measured=rate[name],
                rival=rival,
                against=rate[rival],
                target=targets[rival] if name == ours else None,
            )
            for name in (ours, other)
            for rival in (TORCHSERVE, BARE)
        ],
        charts=[Bars(title="B  ResNet-18 at 224 x 224 from JPEG", unit="answers a second", bars=rate)],
        runs=runs,
        settings={"chosen": chosen, "trials": tried, "cores": CORES},
    )


def _load(picture: bytes, server: Server, seconds: int) -> Measured:
    return load(server.question(picture, "image/jpeg"), connections=CONNECTIONS, seconds=seconds)


def _torchport(archives: Archives, folder: Path, workers: int) -> dict[str, Start]:
    """With one batch size after another; the server divides the cores among the workers."""
    start = partial(
        torchport_serve, archives.resnet, folder / "torchport", minWorkers=workers, maxWorkers=workers
    )
    return {f"batch size {size}": partial(start, batchSize=size) for size in BATCH_SIZES}


def _torchserve(archives: Archives, folder: Path) -> dict[str, Start]:
    """One worker and one a core, the cores divided among them, without batches and with."""
    found: dict[str, Start] = {}
    for workers in sorted({1, CORES}):
        threads = str(max(1, CORES // workers))
        for size in (1, 8):
            found[f"{workers} workers, batch size {size}"] = partial(
                torchserve_server,
                archives.stock,
                folder / "torchserve",
                environment={"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                minWorkers=workers,
                maxWorkers=workers,
                batchSize=size,
                maxBatchDelay=10,
            )
    return found


@contextmanager
def _bare_loop(archives: Archives) -> Iterator[tuple[Measure, str, float]]:
    """The loop, idle until it is measured; the picture's label and its probability."""
    command = [sys.executable, "-m", "bench.bare_loop", str(archives.resnet_onnx), str(archives.photograph)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asks, says = process.stdin, process.stdout

        def told() -> str:
            line = says.readline()
            if not line:
                raise BenchmarkError(f"the bare loop ended with exit code {process.wait()}")
            return line

        def run(seconds: int) -> Measured:
            before = Snapshot.of(process.pid)
            asks.write(f"{seconds}\n")
            asks.flush()
            measured = Measured(**json.loads(told()))
            return replace(measured, usage=Snapshot.of(process.pid).since(before))

        index, probability = json.loads(told())
        yield run, label_of(index), probability


def label_of(index: int) -> str:
    """The name of a class, as `resnet18_224.py` has it."""
    return ("china", "flower")[index] if index < 2 else f"class {index}"


def _require_label(
    name: str, server: Server, picture: bytes, label: str, probability: float | None = None
) -> None:
    answer = json.loads(ask(server.question(picture, "image/jpeg")))
    seen = max(answer, key=answer.get)
    if seen != label:
        raise BenchmarkError(f"{name} sees {seen!r} in the picture, the bare loop {label!r}")
    if probability is not None and abs(answer[seen] - probability) > TOLERANCE:
        raise BenchmarkError(f"{name} gives it {answer[seen]}, the bare loop {probability}")
