"""Part E: tensors by the Open Inference Protocol, over REST and gRPC, beside Triton.

part = measure(archives, Path(".cache/bench/E"), Effort())

The model costs next to nothing. Where Triton cannot be installed, torchport serve is measured alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.archives import Archives
from bench.contenders import Server, bare_uvicorn, constant_grpc, torchport_serve
from bench.environments import Environment, NotInstallable
from bench.figures import Bars, Figure, Part, Target
from bench.grpc_load import count_calls, require_h2load
from bench.load import Measured, count
from bench.mean_magnitude import MAX_ROWS, rows_of
from bench.rounds import Effort, Spread, interleave, median_ms, per_second
from bench.tensors import grpc_call, require_means, rest_question
from bench.triton import triton_server

SIZES = {"768 B": (1, 192), "600 kB": (1, 150_528), "4.8 MB": (8, 150_528)}
"""Rows and values of a row, float32."""
CONNECTIONS = (1, 8)
PROTOCOLS = ("REST", "gRPC")
LARGE_VALUES = 100_000
WARM_UP_S = 2
"""There is no Java here to warm up."""

OURS, TRITON, CONSTANT = "torchport serve", "Triton", "a constant"
LATENCY = Target("under", 1.0)


def measure(archives: Archives, folder: Path, effort: Effort) -> Part:
    """One worker or instance each, the same ONNX file and one thread; three sizes of a tensor.

    Raises:
        BenchmarkError: h2load is missing, a contender does not start, or answers something else.
    """
    require_h2load()
    effort = replace(effort, warm_up=min(effort.warm_up, WARM_UP_S))
    with ExitStack() as stack:
        servers = {OURS: stack.enter_context(_torchport(archives, folder / "torchport"))}
        try:
            environment = Environment.made("triton")
        except NotInstallable as err:
            print(f"E: torchport serve alone: {err}")
        else:
            triton = triton_server(environment, archives.mean_onnx, folder / "triton")
            servers[TRITON] = stack.enter_context(triton)
        for name, server in servers.items():
            for rows, values in SIZES.values():
                require_means(name, server, rows_of(rows, values))
        constants = {
            "REST": stack.enter_context(bare_uvicorn()),
            "gRPC": stack.enter_context(constant_grpc()),
        }
        found = {
            (size, connections, protocol): interleave(
                {
                    name: partial(_load, server, protocol, SIZES[size], connections)
                    for name, server in {**servers, CONSTANT: constants[protocol]}.items()
                },
                effort,
            )
            for size in SIZES
            for connections in CONNECTIONS
            for protocol in PROTOCOLS
        }
    rows = {_said(*key): (SIZES[key[0]][1], runs) for key, runs in found.items()}
    return Part(
        letter="E",
        title="Tensors by the Open Inference Protocol",
        figures=[figure for what, (values, runs) in rows.items() for figure in _figures(what, values, runs)],
        charts=_charts({what: runs for what, (_, runs) in rows.items()}),
        runs={
            f"{what}: {name}": measured for what, (_, runs) in rows.items() for name, measured in runs.items()
        },
        settings={"sizes": SIZES, "triton": TRITON in servers},
    )


def _torchport(archives: Archives, folder: Path) -> AbstractContextManager[Server]:
    return torchport_serve(
        archives.mean,
        folder,
        settings={"enable_grpc": "true"},
        minWorkers=1,
        maxWorkers=1,
        batchSize=MAX_ROWS,
    )


def _said(size: str, connections: int, protocol: str) -> str:
    return f"{size}, {connections} connection{'s' if connections > 1 else ''}, {protocol}"


def _load(server: Server, protocol: str, shape: tuple[int, int], connections: int, seconds: int) -> Measured:
    rows = rows_of(*shape)
    if protocol == "gRPC":
        return count_calls(grpc_call(server, rows), connections=connections, seconds=seconds)
    return count(rest_question(server, rows), connections=connections, seconds=seconds)


def _figures(what: str, values: int, runs: Mapping[str, list[Measured]]) -> list[Figure]:
    """Answers a second and median latency, beside Triton if it is here, and beside a constant."""
    rate_target = Target("at least", 2.0 if values > LARGE_VALUES else 1.0)
    found = []
    for unit, of, target in (("1/s", per_second, rate_target), ("ms", median_ms, LATENCY)):
        for rival in [name for name in (TRITON, CONSTANT) if name in runs]:
            found.append(
                Figure(
                    part="E",
                    what=what,
                    unit=unit,
                    measured=of(runs[OURS]),
                    rival=rival,
                    against=of(runs[rival]),
                    target=target if rival == TRITON else None,
                    failed=sum(run.failed for name in (OURS, rival) for run in runs[name]),
                )
            )
    return found


def _charts(rows: Mapping[str, Mapping[str, list[Measured]]]) -> list[Bars]:
    """Ratios to Triton, round by round; none without it."""
    return [
        Bars(
            title=f"E  {protocol}, answers a second",
            unit="ratio to Triton",
            bars={
                what: Spread.of(
                    ours.per_second / max(theirs.per_second, 1e-9)
                    for ours, theirs in zip(runs[OURS], runs[TRITON], strict=True)
                )
                for what, runs in rows.items()
                if what.endswith(protocol)
            },
        )
        for protocol in PROTOCOLS
        if all(TRITON in runs for runs in rows.values())
    ]
