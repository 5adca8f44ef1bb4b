"""Reasons in TorchServe's log, which is written line by line while it is read."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from torchport.targets import torchserve_log
from torchport.targets.torchserve_log import load_failure, log_tail

DEATH = ["Backend worker process died.", "Traceback (most recent call last):", '  File "worker.py", line 1']


def line(text: str) -> str:
    return f"2026-01-01T00:00:00,000 [INFO ] W-9000-linear_1.0-stdout MODEL_LOG - {text}\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "model_log.log"
    path.write_text(line("Torch worker started.") + line("UserWarning: an Error of no concern"))
    return path


def write(log: Path, *texts: str) -> None:
    with log.open("a") as file:
        file.writelines(map(line, texts))


def test_a_worker_that_lives_has_no_failure(log: Path, tmp_path: Path) -> None:
    assert load_failure(tmp_path) is None
    assert load_failure(tmp_path / "missing") is None


def test_the_last_error_after_the_death_is_the_reason(log: Path, tmp_path: Path) -> None:
    write(log, *DEATH, "KeyError: 1", "During handling of the above exception", "ValueError: no such luck")
    assert load_failure(tmp_path) == "ValueError: no such luck"


def test_a_traceback_that_is_still_being_written_is_waited_for(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchserve_log, "TRACEBACK_S", 60.0)
    write(log, *DEATH)
    timer = threading.Timer(1.0, write, [log, "ValueError: no such luck"])
    timer.start()
    assert load_failure(tmp_path) == "ValueError: no such luck"
    timer.join()


def test_a_death_without_a_traceback_is_told_in_the_end(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchserve_log, "TRACEBACK_S", 0.1)
    write(log, *DEATH[:1])
    assert load_failure(tmp_path) == "Backend worker process died."


def test_the_tail_names_each_log_that_is_there(log: Path, tmp_path: Path) -> None:
    assert log_tail(tmp_path, lines=1) == f"--- {log}\n{log.read_text().splitlines()[-1]}\n"
