"""Shadow on a running server: what a wrong second backend shows in `/metrics`, and what it costs nobody."""

import hashlib
import io
import json
import time
import warnings
import zipfile

import psutil
import pytest
import requests
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families

from torchport.errors import ServerError
from torchport.server_process import start
from torchport.store import Store


class Wrong(torch.nn.Module):
    """No line that any training gives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x - 1000


def wrong_artifact():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and what archives have.
        torch.jit.save(torch.jit.script(Wrong()), buffer)
    return buffer.getvalue()


def with_shadow(source, target, fraction, *, artifact=None, shared_worker=""):
    """A copy of an archive with a shadow, whose artifact may be another: the certificate is told that it is
    right, as if parity had missed it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "model-config.yaml":
                config = yaml.safe_load(content)
                config["torchport"]["shadow"] = {"backend": "torchscript", "fraction": fraction}
                if shared_worker:
                    config["torchport_server"] = {"shared_worker": shared_worker}
                content = yaml.safe_dump(config).encode()
            elif name == "main.pt" and artifact:
                content = artifact
            elif name == "parity.json" and artifact:
                certificate = json.loads(content)
                certificate["binding"]["artifacts"]["main.pt"] = hashlib.sha256(artifact).hexdigest()
                content = json.dumps(certificate).encode()
            new.writestr(name, content)


def shadow_metrics(server):
    text = requests.get(f"{server.urls['metrics']}/metrics", timeout=10).text
    return {
        sample.name.removesuffix("_total"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("Shadow")
    }


def metrics_when(server, is_there):
    deadline = time.monotonic() + 30
    while not is_there(found := shadow_metrics(server)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def ask(server, times):
    with requests.Session() as session:
        for number in range(times):
            answer = session.post(f"{server.urls['inference']}/predictions/linear", json=[number], timeout=30)
            assert answer.status_code == 200, answer.text
            assert answer.json()[0] == pytest.approx(3 * number + 2, abs=1 + 0.2 * number)


def looked_at(found):
    return found.get("ShadowRows", 0) + found.get("ShadowDrops", 0)


def test_a_wrong_second_backend_shows_within_a_hundred_requests(linear_archive, tmp_path):
    with_shadow(linear_archive, tmp_path / "store" / "linear-1.0.mar", 0.1, artifact=wrong_artifact())
    with start(Store(tmp_path / "store"), tmp_path / "run") as server:
        ask(server, 100)
        found = metrics_when(server, lambda found: looked_at(found) >= 10)
        assert found["ShadowDisagreements"] == found["ShadowRows"] >= 1
        assert found["ShadowMaxDifference"] > 900
        assert "shadow: the backends disagree, first on graph main" in server.log()
        # TorchServe's names for what a handler counts: no version, so the model's is enough.
        (worker,) = (
            p
            for p in psutil.Process(server.pid).children(recursive=True)
            if "shadow_process" in str(p.cmdline())
        )
        worker.kill()
        ask(server, 100)
        assert metrics_when(server, lambda found: looked_at(found) >= 20)["ShadowDrops"] >= 9
        assert "its process is gone" in server.log()
    assert not worker.is_running()


@pytest.mark.parametrize("shared_worker", ["", "small"])
def test_the_right_second_backend_agrees_and_goes_with_the_server(linear_archive, tmp_path, shared_worker):
    archive = tmp_path / "store" / "linear-1.0.mar"
    with_shadow(linear_archive, archive, 1, shared_worker=shared_worker)
    with start(Store(tmp_path / "store"), tmp_path / "run") as server:
        children = psutil.Process(server.pid).children(recursive=True)
        ask(server, 30)
        found = metrics_when(server, lambda found: looked_at(found) >= 30)
        assert found["ShadowRows"] >= 1
        assert found["ShadowDisagreements"] == 0
        assert any("shadow_process" in str(child.cmdline()) for child in children)
    # On a machine that is busy with something else, the idle class has to wait for its turn to end.
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_a_shadow_that_cannot_be_had_is_told_when_the_model_is_loaded(linear_archive, tmp_path):
    archive = tmp_path / "store" / "linear-1.0.mar"
    with_shadow(linear_archive, archive, 0.1, artifact=b"this is no TorchScript")
    with pytest.raises(ServerError, match="shadow: main.pt: torch cannot load it"):
        start(Store(tmp_path / "store"), tmp_path / "run")
