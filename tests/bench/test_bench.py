"""The benchmark's own machinery: it must measure what it says, and fail where a figure would be worthless."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench import chart, grpc_load, installable, machine, open_inference, report, scale
from bench.__main__ import app
from bench.archives import MEAN_RECIPE, Archives, length_archive, shipped
from bench.contenders import bare_uvicorn
from bench.environments import Environment, NotInstallable
from bench.errors import BenchmarkError
from bench.figures import Figure, Part, Target
from bench.load import Measured, Question, load
from bench.rounds import Effort, Spread, interleave
from bench.usage import Snapshot
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
SLOW_S = 1.3
TINY = Effort(seconds=1, rounds=1, warm_up=1)


class Fickle(http.server.BaseHTTPRequestHandler):
    """Answers its first request, and refuses all others."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if self.asked == 1 else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Slow(Fickle):
    """Takes its time for all but its first request."""

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.asked > 1:
            time.sleep(SLOW_S)
        with contextlib.suppress(OSError):  # Who asked may be gone.
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()


@contextlib.contextmanager
def answered_by(handler: type[Fickle]) -> Iterator[Question]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.asked = 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Question(url=f"http://127.0.0.1:{server.server_port}/", body=b"[4.0]")
    server.shutdown()
    thread.join()
    server.server_close()


def figure(median: float, against: float | None, target: Target | None) -> Figure:
    return Figure(
        part="A",
        what="speed",
        unit="1/s",
        measured=Spread(median, median - 1, median + 1),
        rival="another" if against else "",
        against=Spread(against, against, against) if against else None,
        target=target,
    )


@needs_wrk
def test_requests_that_fail_are_no_measurement() -> None:
    with answered_by(Fickle) as question, pytest.raises(BenchmarkError, match="failed.*status"):
        load(question, connections=2, seconds=1)


@needs_wrk
def test_a_run_without_an_answer_is_made_longer() -> None:
    with answered_by(Slow) as question:
        measured = load(question, connections=2, seconds=1)
    assert measured.median_ms > SLOW_S * 1e3


@needs_wrk
def test_a_server_is_measured() -> None:
    pytest.importorskip("uvicorn")
    with bare_uvicorn() as server:
        measured = load(server.question(b"[4.0]"), connections=2, seconds=1)
    assert measured.per_second > 0
    assert 0 < measured.median_ms <= measured.p99_ms <= measured.worst_ms
    assert measured.usage is not None
    assert measured.usage.server > 0
    assert measured.usage.load > 0


def test_without_wrk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = CliRunner().invoke(app, ["--only", "D"])
    assert outcome.exit_code == 2
    assert "apt-get install wrk" in outcome.output


def test_an_unknown_part_is_refused() -> None:
    outcome = CliRunner().invoke(app, ["--only", "A,X"])
    assert outcome.exit_code == 2
    assert "A, B, C, D, E, F" in outcome.output


def test_every_round_has_everybody_and_another_first() -> None:
    order = []

    def measure(name: str) -> Measured:
        order.append(name)
        return Measured(per_second=len(order), median_ms=1.0, p99_ms=1.0, worst_ms=1.0)

    found = interleave(
        {name: lambda _, name=name: measure(name) for name in "abc"},  # type: ignore[misc]
        Effort(seconds=1, rounds=3, warm_up=1),
    )
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    # The first three, of warming up, are in no result.
    assert [run.per_second for run in found["a"]] == [4, 9, 11]


@pytest.mark.parametrize(
    ("against", "target", "holds"),
    [
        (50.0, Target("at least", 2.0), True),
        (51.0, Target("at least", 2.0), False),
        (100.0, Target("more than", 1.0), False),
        (500.0, Target("at most", 0.2), True),
        (None, Target("under", 100.0), False),
        (None, Target("under", 101.0), True),
        (50.0, None, True),
    ],
)
def test_a_target_is_of_the_ratio_where_there_is_a_rival(
    against: float | None, target: Target | None, holds: bool
) -> None:
    assert figure(100.0, against, target).holds is holds


def test_a_missed_target_ends_with_1_and_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missed = figure(100.0, 90.0, Target("at least", 5.0))
    part = Part(letter="A", title="speed", figures=[missed], charts=[])
    monkeypatch.setattr("bench.__main__.PARTS", {"A": lambda archives, folder, effort: part})
    monkeypatch.setattr("bench.__main__.Archives.made", lambda folder: None)
    monkeypatch.setattr("bench.__main__.require_wrk", lambda: "wrk")
    monkeypatch.setattr("bench.machine.describe", lambda: {"busy_percent": 42.0})
    monkeypatch.setattr("bench.chart.draw", lambda parts, found, path: None)
    outcome = CliRunner().invoke(app, ["--only", "A", "--results", str(tmp_path)])
    assert outcome.exit_code == 1
    assert "MISSED" in outcome.output
    assert "42% of this machine busy" in outcome.output
    (kept,) = json.loads((tmp_path / "latest.json").read_text())["figures"]
    assert kept["holds"] is False
    assert kept["ratio"] == pytest.approx(100 / 90)


@pytest.mark.slow
@needs_wrk
def test_the_cost_of_scale_is_measured_and_drawn(
    linear_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(scale, "MODELS", 3)
    monkeypatch.setattr(scale, "IDLE", 20)
    monkeypatch.setattr(scale, "BATCH_SIZES", (1, 8))
    nothing = tmp_path / "nothing"
    archives = Archives(
        linear=linear_archive,
        length=length_archive(tmp_path),
        **dict.fromkeys(
            ("resnet", "stock", "mean", "linear_onnx", "resnet_onnx", "mean_onnx", "photograph"), nothing
        ),
    )
    part = scale.measure(archives, tmp_path / "D", TINY)
    assert all(figure.measured.median >= 0 for figure in part.figures)
    assert {figure.unit for figure in part.figures} == {"1/s", "ms", "s", "MB", "kB", "MB/s"}
    found = machine.describe()
    console = Console(width=180, record=True)
    report.print_table([part], console)
    assert "batch size 8" in console.export_text()
    report.write_results([part], found, TINY, tmp_path / "kept.json")
    assert len(json.loads((tmp_path / "kept.json").read_text())["figures"]) == len(part.figures)
    chart.draw([part], found, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")


H2LOAD = """finished in 2.00s, 420.00 req/s, 50.12KB/s
requests: 840 total, 848 started, 840 done, 840 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 840 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 100.25KB (102656) total, 12.30KB (12595) headers (space savings 95.00%), {data} data
"""


@pytest.mark.parametrize(
    ("data", "errors"),
    [("57.42KB (58800)", {}), ("57.89KB (59280)", {}), ("41.02KB (42000)", {"no message": 240})],
)
def test_grpc_errors_are_seen_though_http_calls_them_a_success(data: str, errors: dict[str, int]) -> None:
    assert grpc_load.figures(H2LOAD.format(data=data), answer_bytes=70) == (420.0, errors)


def test_a_log_of_h2load_gives_latencies() -> None:
    assert grpc_load.milliseconds("1\t200\t2500\n2\t200\t1500\n3\t503\t10\n") == [1.5, 2.5]


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ([14.0], 14.0, True),
        ([[14.0]], 14.0, True),
        ([14.1], 14.0, False),
        ([14.0, 14.0], 14.0, False),
        ({"china": 0.6, "flower": 0.1}, "china", True),
        ({"china": 0.1, "flower": 0.6}, "china", False),
        ({"error": "busy"}, "china", False),
    ],
)
def test_an_answer_is_held_against_the_models(answer: object, expected: float | str, right: bool) -> None:
    assert installable.is_right(answer, expected) is right


def test_who_used_the_processor_adds_up() -> None:
    before = Snapshot(server_s=1.0, load_s=2.0, idle_s=3.0, machine_s=10.0)
    usage = Snapshot(server_s=3.0, load_s=3.0, idle_s=3.5, machine_s=14.0).since(before)
    assert (usage.server, usage.load, usage.idle) == (0.5, 0.25, 0.125)
    assert usage.others == pytest.approx(0.125)
    assert replace(usage, cores=2).microseconds(usage.server, per_second=1000.0) == 1000.0


def test_a_row_with_failed_requests_is_invalid() -> None:
    assert not replace(figure(100.0, 50.0, Target("at least", 1.0)), failed=3).holds


@pytest.mark.slow
@needs_wrk
@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_tensors_are_measured_where_triton_cannot_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvicorn")

    def none(name: str) -> Environment:
        raise NotInstallable(f"{name} cannot be installed here: no wheel")

    monkeypatch.setattr(open_inference.Environment, "made", none)
    monkeypatch.setattr(open_inference, "SIZES", {"768 B": (1, 192)})
    monkeypatch.setattr(open_inference, "CONNECTIONS", (1,))
    build, archive = shipped(load_recipe(str(MEAN_RECIPE)), Store(tmp_path / "store"))
    nothing = tmp_path / "nothing"
    fields = ("linear", "resnet", "stock", "length", "linear_onnx", "resnet_onnx", "photograph")
    archives = Archives(mean=archive, mean_onnx=build.path / "main.onnx", **dict.fromkeys(fields, nothing))
    part = open_inference.measure(archives, tmp_path / "E", TINY)
    assert "triton cannot be installed here: no wheel" in capsys.readouterr().out
    assert {figure.rival for figure in part.figures} == {"a constant"}
    assert all(figure.measured.median > 0 and not figure.failed for figure in part.figures)
    assert all(run.usage is not None for runs in part.runs.values() for run in runs)
