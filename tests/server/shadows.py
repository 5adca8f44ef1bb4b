"""Archives with a shadow whose second backend is wrong on purpose, and what a server's metrics tell of it."""

import hashlib
import io
import json
import time
import warnings
import zipfile

import psutil
import requests
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.server.waiting import PATIENCE_S, wait_until


class Wrong(torch.nn.Module):
    """No line that any training gives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x - 1000


class Stuck(torch.nn.Module):
    """A line, and a computation without an end for what is above 100."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = 3 * x + 2
        while bool((x > 100).any()):
            y = y + 1
        return y


def wrong_artifact():
    return _script(Wrong())


def stuck_artifact():
    return _script(Stuck())


def _script(module):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and what archives have.
        torch.jit.save(torch.jit.script(module), buffer)
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
                config.pop("torchport_workers")  # One, whose shadow the tests look at.
                # All of a processor: a machine that is busy with other tests is not to make these wait.
                block = {"backend": "torchscript", "fraction": fraction, "share": 1}
                config["torchport"]["shadow"] = block
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


def shadow_metrics(url):
    text = requests.get(f"{url}/metrics", timeout=10).text
    return {
        sample.name.removesuffix("_total"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("Shadow")
    }


def metrics_when(url, is_there):
    deadline = time.monotonic() + PATIENCE_S
    while not is_there(found := shadow_metrics(url)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def looked_at(found):
    return found.get("ShadowRows", 0) + found.get("ShadowDrops", 0)


def shadow_processes(pid):
    """The processes below this one in which shadows have their backends."""
    children = psutil.Process(pid).children(recursive=True)
    return [p for p in children if "torchport_runtime.shadow.process" in _command(p)]


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_until_busy(process):
    """Wait until it has computed for half a second: a thousand times what one row of a line takes."""

    def spent():
        times = process.cpu_times()
        return times.user + times.system

    before = spent()
    wait_until(lambda: spent() - before > 0.5)


def assert_ends(process):
    """It ends, soon. One that does not is ended here: it is not to burn a processor after the tests."""
    _, alive = psutil.wait_procs([process], timeout=PATIENCE_S)
    for left in alive:
        left.kill()
    assert not alive
