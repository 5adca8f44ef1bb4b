"""Archives that earlier releases made: what is proven in them holds, by every way to ask them.

`tests/archives_of_releases/README.md` says how each was made. They answer as they did on the day of their
release: what was asked then, and what came of it, is in their own `evidence.npz`.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests

from tests.conftest import ROOT
from tests.server.grpc_client import Client
from torchport.archive.contents import extract, inspect_archive
from torchport.archive.local_record import read_record
from torchport.archive.model import load
from torchport.store.folders import Store
from torchport.store.hashing import sha256_file
from torchport.targets.torchport_serve import start
from torchport.verify.answers.equality import same_answer
from torchport.verify.evidence import FILE, read_evidence

RELEASES = ROOT / "tests" / "archives_of_releases"
MADE = sorted(RELEASES.glob("*.mar"))


@pytest.fixture(scope="module", params=MADE, ids=lambda path: path.stem)
def archive(request, tmp_path_factory):
    """A copy in a store of its own, under the name that it had in one."""
    contents = inspect_archive(request.param)
    store = Store(tmp_path_factory.mktemp("release"))
    return Path(shutil.copy(request.param, store.archive(contents.name, contents.version)))


@pytest.fixture(scope="module")
def evidence(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    extract(archive, folder, only={FILE})
    return read_evidence(folder / FILE)


@pytest.fixture(scope="module")
def verified(archive):
    """The archive, after `torchport verify --store` of the store that it is in."""
    command = [sys.executable, "-m", "torchport", "verify", "--store", str(archive.parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return archive


@pytest.fixture(scope="module")
def server(verified, tmp_path_factory):
    """A server that refuses what has no certificate, and what this machine has not verified."""
    settings = {"require_certificate": "true", "require_local_parity": "true"}
    with start(Store(verified.parent), tmp_path_factory.mktemp("run"), settings=settings) as server:
        yield server


@pytest.fixture
def grpc_client(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
        yield Client(channel)


def tensors_of(case):
    """A case's inputs, with what both forms of the protocol say of a tensor; these have float32 ones only."""
    for name, array in case.inputs.items():
        assert array.dtype == np.float32
        yield {"name": name, "datatype": "FP32", "shape": list(array.shape)}, array.ravel().tolist()


def require_within_bounds(case, outputs):
    assert outputs.keys() == case.expected.keys()
    for name, expected in case.expected.items():
        error = np.abs(np.reshape(outputs[name], expected.shape) - expected).max()
        assert error <= case.bounds[name], f"{case.name}: {name}"


def test_none_was_made_anew():
    text = (RELEASES / "README.md").read_text(encoding="utf-8")
    assert MADE
    for path in MADE:
        assert f"`{path.name}`" in text
        assert f"`{sha256_file(path)}`" in text


def test_its_hashes_hold(archive):
    contents = inspect_archive(archive)
    assert contents.problems == ()
    assert [str(variant) for variant in contents.variants] == ["onnxruntime", "torchscript"]


def test_it_answers_in_process_as_it_did(archive, evidence):
    assert evidence.requests
    with load(archive) as model:
        for request in evidence.requests:
            assert same_answer(model.predict(request.body, **request.params), request.answer)


@pytest.mark.road
def test_this_machine_verifies_it_again(verified, evidence):
    record = read_record(verified)
    assert record["passed"]
    assert record["not_installed"] == []
    assert {result["backend"] for result in record["results"]} == {"onnxruntime", "torchscript"}
    assert all(result["cases"] == len(evidence.cases) for result in record["results"])
    assert record["results"][0]["requests_compared"] == len(evidence.requests)


@pytest.mark.server
def test_a_server_answers_by_rest_as_it_did(archive, evidence, server):
    contents = inspect_archive(archive)
    with server.client() as client:
        for request in evidence.requests:
            answer = client.predict(contents.name, version=contents.version, json=request.body)
            assert same_answer(answer, request.answer)


@pytest.mark.server
def test_a_server_answers_by_grpc_as_it_did(archive, evidence, grpc_client):
    for request in evidence.requests:
        answer = grpc_client.predict(inspect_archive(archive).name, data=json.dumps(request.body).encode())
        assert same_answer(json.loads(answer), request.answer)


@pytest.mark.server
def test_a_server_takes_tensors_by_rest(archive, evidence, server):
    url = f"{server.urls['inference']}/v2/models/{inspect_archive(archive).name}/infer"
    for case in evidence.cases:
        inputs = [{**tensor, "data": values} for tensor, values in tensors_of(case)]
        answer = requests.post(url, json={"inputs": inputs}, timeout=30)
        assert answer.status_code == 200, answer.text
        require_within_bounds(case, {output["name"]: output["data"] for output in answer.json()["outputs"]})


@pytest.mark.server
def test_a_server_takes_tensors_by_grpc(archive, evidence, grpc_client):
    name = inspect_archive(archive).name
    for case in evidence.cases:
        inputs = [{**tensor, "contents": {"fp32_contents": values}} for tensor, values in tensors_of(case)]
        answer = grpc_client.infer(model_name=name, inputs=inputs)
        require_within_bounds(case, {output.name: output.contents.fp32_contents for output in answer.outputs})
