"""How many workers a model gets if nobody says: by cores, memory and devices. One test starts a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests

from tests.server.archives import write_archive
from tests.server.models.unpacked_model import unpacked_model
from tests.server.waiting import wait_until
from torchport.archive.contents import Entry
from torchport.server.errors import ArchiveRefused
from torchport.server.models.memory import available_bytes
from torchport.server.models.new_version import settings_of_new
from torchport.server.models.registration import Registration
from torchport.server.models.unpacked import UnpackedModel
from torchport.server.settings.settings import ServerSettings
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start
from torchport_runtime.cores import available_cores

GIB = 1 << 30
ONNX: dict[str, Any] = {"torchport": {"backend": "onnxruntime"}}
OPEN = {"torchport_workers": "auto", "minWorkers": 1, "maxWorkers": 1}
AT_START = Registration(url="model-1.0.mar", at_startup=True)
BY_API = Registration(url="model-1.0.mar", fallback_workers=0)


def model(config: dict[str, Any], *, threads: int = 0, **sizes: int) -> UnpackedModel:
    """A model with this config, and files of these sizes; `_` in their names stands for a dot."""
    entries = tuple(Entry(name.replace("_", "."), size, "") for name, size in sizes.items())
    return unpacked_model(config=config, thread_count=threads, entries=entries)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the cores and the available memory."""
    monkeypatch.delenv("TORCHPORT_THREADS", raising=False)

    def set_up(cores: int, free: int | None = 1000 * GIB) -> None:
        monkeypatch.setattr("torchport.server.models.worker_count.available_cores", lambda: cores)
        monkeypatch.setattr("torchport.server.models.settings.available_cores", lambda: cores)
        monkeypatch.setattr("torchport.server.models.worker_count.available_bytes", lambda: free)

    set_up(8)
    return set_up


def chosen(
    unpacked: UnpackedModel, asked: Registration = AT_START, *, gpus: int = 0, planned: int = 0, **server: Any
) -> tuple[int, int, str]:
    """Minimum and maximum of workers, and what is said of the choice; "" if there was none."""
    found, choice = settings_of_new(unpacked, asked, ServerSettings(**server), gpus=gpus, planned=planned)
    return found.min_workers, found.max_workers, "" if choice is None else str(choice)


@pytest.mark.usefixtures("machine")
def test_there_is_one_for_each_core() -> None:
    assert chosen(model(ONNX | OPEN)) == (8, 8, "8 workers, one for each of 8 cores")
    assert chosen(model({}))[:2] == (8, 8)
    assert chosen(model(ONNX | OPEN), BY_API)[:2] == (8, 8)


def test_one_core_has_one(machine: Any) -> None:
    machine(1)
    assert chosen(model(ONNX | OPEN)) == (1, 1, "1 worker, one for each of 1 core")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("config", "asked", "server", "workers"),
    [
        ({"minWorkers": 1, "maxWorkers": 1}, AT_START, {}, (1, 1)),
        ({"minWorkers": 3, "maxWorkers": 5}, BY_API, {}, (3, 5)),
        (OPEN, AT_START, {"default_workers_per_model": 2}, (2, 2)),
        (OPEN, Registration(url="", initial_workers=0), {}, (0, 0)),
        (OPEN, Registration(url="", initial_workers=3), {"default_workers_per_model": 2}, (3, 3)),
        (OPEN, AT_START, {"models": {"model": {"1.0": {"minWorkers": 2, "maxWorkers": 4}}}}, (2, 4)),
        # Somebody has edited the numbers that were packaged.
        (OPEN | {"minWorkers": 4, "maxWorkers": 6}, AT_START, {}, (4, 6)),
        # As on TorchServe.
        ({}, AT_START, {"default_workers_per_model": 2}, (2, 2)),
        ({}, BY_API, {}, (0, 0)),
        ({}, BY_API, {"default_workers_per_model": 2}, (2, 2)),
    ],
)
def test_a_number_that_somebody_says_holds(
    config: dict[str, Any], asked: Registration, server: dict[str, Any], workers: tuple[int, int]
) -> None:
    assert chosen(model(ONNX | config), asked, **server) == (*workers, "")


def test_there_are_no_more_than_fit_into_half_of_the_memory(machine: Any) -> None:
    machine(64, 64 * GIB)
    large = model(ONNX | OPEN, main_onnx=3 * GIB, evidence_npz=50 * GIB, main_pt=3 * GIB)
    assert chosen(large) == (
        *(5, 5),
        "5 workers, because each may take 6.1 GiB, and 64.0 GiB are available",
    )
    assert chosen(large, planned=26 * GIB)[0] == 1
    assert chosen(large, planned=100 * GIB)[0] == 1  # One there is, whatever the estimate says.
    machine(64, None)
    assert chosen(large)[0] == 64


def test_a_shadow_and_an_unknown_handler_take_memory_too(machine: Any) -> None:
    machine(64, 64 * GIB)
    config = ONNX | OPEN | {"torchport": {"shadow": {"backend": "torchscript", "fraction": 0.1}}}
    assert chosen(model(config, main_onnx=GIB, main_pt=GIB))[0] == 6
    assert chosen(model({}, weights_pth=GIB, index_json=GIB))[0] == 7


@pytest.mark.usefixtures("machine")
def test_threads_that_are_given_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(model(ONNX | OPEN, threads=4)) == (2, 2, "2 workers, of 4 threads each on 8 cores")
    assert chosen(model(ONNX | OPEN, threads=99))[0] == 1
    monkeypatch.setenv("TORCHPORT_THREADS", "2")
    assert chosen(model(ONNX | OPEN, threads=4))[0] == 4


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("config", "workers"),
    [
        ({}, 3),
        (ONNX | OPEN, 3),
        (OPEN | {"torchport": {"device": "cuda:1"}}, 1),
        (OPEN | {"torchport": {"device": "cpu"}}, 8),
        (OPEN | {"torchport": {"precision": "int8"}}, 8),
        (ONNX | OPEN | {"deviceType": "cpu"}, 8),
        (ONNX | OPEN | {"deviceType": "gpu", "deviceIds": [0, 2]}, 2),
    ],
)
def test_there_is_one_for_each_gpu(config: dict[str, Any], workers: int) -> None:
    assert chosen(model(config), gpus=3)[0] == workers


@pytest.mark.usefixtures("machine")
def test_a_shared_process_has_one() -> None:
    shared = ONNX | OPEN | {"torchport_server": {"shared_worker": "small"}}
    assert chosen(model(shared)) == (1, 1, "1 worker, because it shares a process")


@pytest.mark.usefixtures("machine")
def test_the_operator_s_bound_for_archives_bounds_the_choice() -> None:
    assert chosen(model(ONNX | OPEN), max_workers_of_archive=3)[0] == 3


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("value", [2, True, None, "all"])
def test_another_word_than_auto_is_refused(value: object) -> None:
    with pytest.raises(ArchiveRefused, match="torchport_workers is .*: auto is expected"):
        chosen(model(ONNX | {"torchport_workers": value}))


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {}, 8 * GIB),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "1\n"}, 8 * GIB),
        (
            "0::/\n",
            {
                "memory.max": f"{4 * GIB}\n",
                "memory.current": f"{3 * GIB}\n",
                "memory.stat": f"anon 1\ninactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        ("0::/\n", {"memory.max": "1\n", "memory.current": "2\n"}, 0),
        (
            "7:memory:/box\n",
            {
                "memory/box/memory.limit_in_bytes": f"{3 * GIB}",
                "memory/box/memory.usage_in_bytes": f"{GIB}",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": f"{GIB}",
            },
            2 * GIB,
        ),
    ],
)
def test_a_container_s_memory_is_what_its_limit_leaves(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int
) -> None:
    info, process, mounts = (tmp_path / name for name in ("meminfo", "cgroup", "mounts"))
    info.write_text(f"MemTotal:  99999999 kB\nMemAvailable:  {8 * GIB // 1024} kB\nHugePages_Total: 0\n")
    process.write_text(cgroup)
    for name, content in files.items():
        (mounts / name).parent.mkdir(parents=True, exist_ok=True)
        (mounts / name).write_text(content)
    assert available_bytes(info, process, mounts) == expected


def test_the_memory_of_another_system_is_unknown(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path) is None


HANDLER = """
    import os

    def note(text):
        with open({notes!r}, "a") as file:
            file.write(f"{{text}} {{os.getpid()}}\\n")

    note("begun")

    def handle(data, context):
        if data is None:
            note("loaded")
        return data and [os.environ["OMP_NUM_THREADS"]] * len(data)
"""


@pytest.mark.server
def test_the_first_one_loads_alone_and_the_others_follow(tmp_path: Path) -> None:
    store, notes = Store(tmp_path / "store"), tmp_path / "notes"
    write_archive(store.path, "echo", HANDLER.format(notes=str(notes)), config=OPEN)
    with start(store, tmp_path / "run", settings={"enable_grpc": "false"}) as server:
        answer = requests.post(f"{server.urls['inference']}/predictions/echo", data="x", timeout=20)
        assert answer.text == "1"
        log = server.log()
        assert f"echo 1.0: {available_cores()} worker" in log
        assert "default_workers_per_model" in log

        def described() -> dict[str, Any]:
            found = requests.get(f"{server.urls['management']}/models/echo", timeout=20).json()
            assert isinstance(found, list)
            return dict(found[0])

        wait_until(
            lambda: [worker["status"] for worker in described()["workers"]] == ["READY"] * available_cores()
        )
        assert described()["minWorkers"] == described()["maxWorkers"] == available_cores()
    begun, loaded, *others = (line.split() for line in notes.read_text().splitlines())
    assert (begun[0], loaded[0], begun[1]) == ("begun", "loaded", loaded[1])
    assert len(others) == 2 * (available_cores() - 1)
