"""Archives proven again where they are to serve: what changes the numbers is found, and the server asks."""

import json
import re
import shutil

import numpy as np
import pytest
import requests
from typer.testing import CliRunner

from tests.archive_edits import rewrite
from torchport import Request, local_proving
from torchport.archive_file import inspect_archive
from torchport.cli import app
from torchport.errors import ArchiveError
from torchport.evidence import FILE, Evidence, read_evidence
from torchport.loading import ArchivedModel, load
from torchport.local_parity import record_path, require_local_parity
from torchport.local_proving import prove_again
from torchport.parity import verify
from torchport.server_process import start
from torchport.store import Store
from torchport_runtime import write_arrays


def npz(index):
    return write_arrays({"index": np.frombuffer(index, np.uint8)}, "npz")


@pytest.fixture
def archive(linear_archive, store):
    store.path.mkdir()
    return shutil.copy(linear_archive, store.path / linear_archive.name)


@pytest.fixture
def otherwise(monkeypatch):
    """Let every backend compute something else, as another processor or library might."""
    run = ArchivedModel.run

    def change(by):
        monkeypatch.setattr(
            ArchivedModel,
            "run",
            lambda self, graph, inputs: {name: by(a) for name, a in run(self, graph, inputs).items()},
        )

    return change


def failures(record):
    return [failure for result in record["results"] for failure in result["failures"]]


def test_evidence_is_real_inputs_with_the_trained_models_answers(built):
    recipe, folder = built()
    certificate = verify(recipe, folder).certificate
    evidence = read_evidence(folder.evidence)
    assert certificate["evidence"].keys() == {FILE}
    first = evidence.cases[0]
    assert first.name == "sample 0"
    (sample,) = recipe.samples()
    np.testing.assert_array_equal(first.inputs["x"], sample["x"])
    assert first.expected["y"].dtype == np.float64
    assert {"seed 1", "large", "denormal", "batch=64"} <= {case.name for case in evidence.cases}
    assert all(len(case.inputs["x"]) <= 8 for case in evidence.cases)
    (request,) = evidence.requests
    np.testing.assert_allclose(request.answer, evidence_answer(folder, request.body), rtol=1e-6)  # Float32.


def evidence_answer(folder, row):
    import torch

    weights = torch.load(folder.weights, weights_only=True)
    return (torch.tensor(row) @ weights["weight"].T + weights["bias"]).tolist()


def test_what_the_environment_says_of_tensorrt_is_no_part_of_it(archive, monkeypatch):
    monkeypatch.setenv("TORCHPORT_TENSORRT", "true")
    monkeypatch.setattr(local_proving, "cuda_device_count", lambda: 1)
    asked = []

    def loaded(archive, **options):
        asked.append((options["device"], options["tensorrt"]))
        return load(archive, **options | {"device": "cpu"})

    monkeypatch.setattr(local_proving, "load", loaded)
    assert prove_again(archive).record["passed"]
    assert set(asked) == {("cpu", False), ("cuda", False)}


def test_evidence_that_is_lost_is_made_again(built):
    recipe, folder = built()
    verify(recipe, folder)
    before = folder.evidence.read_bytes()
    assert not verify(recipe, folder).done
    folder.evidence.unlink()
    assert verify(recipe, folder).done
    assert folder.evidence.read_bytes() == before


def test_bytes_and_json_come_back_as_they_were(tmp_path):
    evidence = Evidence("onnxruntime")
    evidence.add_request(Request(body=b"\x00\xff", params={"k": "3"}), b"\x89PNG")
    evidence.add_request(Request(json={"x": [1.5]}), {"label": "é", "scores": [1, 2.5]})
    path = tmp_path / FILE
    path.write_bytes(evidence.to_bytes())
    assert read_evidence(path) == evidence


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"no zip",
        npz(b"[]"),
        npz(b'{"format": 9}'),
        npz(b'{"format": 1, "cases": [{"graph": "main", "name": "a", "inputs": [], "expected": {}}]}'),
    ],
)
def test_damaged_evidence_is_an_error(tmp_path, content):
    path = tmp_path / FILE
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"evidence\.npz"):
        read_evidence(path)


def test_an_archive_is_proven_once_on_a_machine(archive):
    result = prove_again(archive)
    assert result.done
    assert result.record["passed"]
    assert {r["backend"] for r in result.record["results"]} == {"onnxruntime", "torchscript"}
    assert all(r["cases"] > 5 and 0 < r["worst_error_to_bound"] < 1 for r in result.record["results"])
    assert result.record["results"][0]["requests_compared"] > 0
    require_local_parity(archive, "onnxruntime")
    assert not prove_again(archive).done
    assert prove_again(archive, force=True).done


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (lambda a: a * np.float32(1.001), "'y': error .* exceeds the bound"),
        (lambda a: np.where(a == a.flat[0], np.nan, a), "'y'.*exceeds|NaN|nan"),
        (lambda a: a[..., None], r"'y' is \[.*expected"),
    ],
)
def test_a_machine_that_computes_otherwise_does_not_pass(archive, otherwise, by, said):
    otherwise(by)
    record = prove_again(archive).record
    assert not record["passed"]
    assert any(re.search(said, failure) for failure in failures(record)), failures(record)
    with pytest.raises(ArchiveError, match="did not pass on this machine: graph main"):
        require_local_parity(archive, "onnxruntime")


def test_a_handler_that_answers_otherwise_does_not_pass(archive, monkeypatch):
    monkeypatch.setattr(ArchivedModel, "predict", lambda self, body, **params: [0.0])
    assert any(
        "request 0: the answer is [0.0], proven was" in f for f in failures(prove_again(archive).record)
    )


def test_a_handler_that_breaks_is_told_and_costs_no_other_archive(archive, store, monkeypatch):
    def broken(self, body, **params):
        raise ZeroDivisionError("of the handler's own")

    monkeypatch.setattr(ArchivedModel, "predict", broken)
    shutil.copy(archive, store.path / "other-1.0.mar")
    done = CliRunner().invoke(app, ["verify", "--store", str(store.path)])
    assert "linear-1.0.mar, other-1.0.mar" in str(done.exception)
    assert "ZeroDivisionError: of the handler's own" in failures(prove_again(archive).record)[0]


def test_a_device_that_the_backend_cannot_use_is_passed_over(archive, monkeypatch):
    from torchport import local_proving

    monkeypatch.setattr(local_proving, "cuda_device_count", lambda: 1)
    record = prove_again(archive).record
    assert record["passed"]
    assert {result["device"] for result in record["results"]} == {"cpu"}


def test_what_changed_since_is_named(archive, monkeypatch):
    with pytest.raises(ArchiveError, match="has not been proven on this machine"):
        require_local_parity(archive, "onnxruntime")
    prove_again(archive)
    path = record_path(archive)
    record = json.loads(path.read_text())
    for change, said in (
        ({"machine": record["machine"] | {"processor": "another"}}, "the machine's processor"),
        ({"libraries": {"onnxruntime": {"onnxruntime": "1.0"}}}, "numpy, onnxruntime, pillow"),
        ({"archive_sha256": "0" * 64}, "the archive"),
    ):
        path.write_text(json.dumps(record | change))
        with pytest.raises(ArchiveError, match=f"{said} changed"):
            require_local_parity(archive, "onnxruntime")
    for damage in ({"machine": 1}, {"results": [3]}, {"libraries": None}):
        path.write_text(json.dumps(record | damage))
        with pytest.raises(ArchiveError, match="damaged"):
            require_local_parity(archive, "onnxruntime")
    path.write_text("{")
    with pytest.raises(ArchiveError, match="has not been proven"):
        require_local_parity(archive, "onnxruntime")


def test_a_backend_that_is_not_installed_is_said_and_not_proven(archive, monkeypatch):
    from torchport import local_proving

    versions = local_proving.library_versions
    monkeypatch.setattr(
        local_proving, "library_versions", lambda *names: versions(*(n for n in names if n != "torch"))
    )
    record = prove_again(archive).record
    assert record["passed"]
    assert record["not_installed"] == ["torchscript"]
    require_local_parity(archive, "onnxruntime")
    monkeypatch.undo()
    with pytest.raises(ArchiveError, match="numpy, pillow, torch changed"):
        require_local_parity(archive, "torchscript")


def test_evidence_is_bound_to_the_certificate(archive, linear_archive):
    rewrite(linear_archive, archive, {FILE: b"other"})
    assert "evidence.npz is not what parity.json was made for" in inspect_archive(archive).problems
    rewrite(linear_archive, archive, {FILE: None})
    assert "evidence.npz is missing" in inspect_archive(archive).problems
    with pytest.raises(ArchiveError, match="package it again"):
        prove_again(archive)


def test_an_archive_of_before_there_was_evidence_says_so(archive, linear_archive):
    certificate = json.loads((linear_archive.parent / ".build/linear/1.0/parity.json").read_text())
    del certificate["evidence"]
    rewrite(linear_archive, archive, {FILE: None, "parity.json": json.dumps(certificate).encode()})
    assert inspect_archive(archive).problems == ()
    with pytest.raises(ArchiveError, match="verify and package it again"):
        prove_again(archive)


def test_the_command_proves_the_whole_store_and_says_no(archive, otherwise, store):
    run = CliRunner().invoke
    good = run(app, ["verify", "--store", str(store.path)])
    assert good.exit_code == 0, good.output
    assert "linear-1.0.mar: onnxruntime on cpu: pass" in good.output
    assert "proven before" in run(app, ["verify", "--store", str(store.path)]).output
    otherwise(lambda a: a + 1)
    bad = run(app, ["verify", "--store", str(store.path), "--force"])
    assert "FAIL" in bad.output
    assert "not proven on this machine: linear-1.0.mar" in str(bad.exception)
    # Nothing in the store is passed over, whatever its name.
    (store.path / "other.mar").write_text("no archive")
    shutil.copy(archive, store.path / "copy.mar")
    otherwise(lambda a: a)
    mixed = run(app, ["verify", "--store", str(store.path)])
    assert "copy.mar: onnxruntime on cpu: pass" in mixed.output
    assert "not proven on this machine: other.mar" in str(mixed.exception)
    empty = run(app, ["verify", "--store", str(store.path / "none")])
    assert "no archive in" in str(empty.exception)


def test_a_server_that_demands_it_serves_only_what_is_proven(archive, tmp_path):
    store = Store(archive.parent)
    settings = {"enable_grpc": "false", "require_local_parity": "true", "enable_model_api": "true"}
    settings["load_models"] = "none"
    with start(store, tmp_path / "run", settings=settings) as server:

        def register():
            url = f"{server.urls['management']}/models"
            params = {"url": archive.name, "initial_workers": "1", "synchronous": "true"}
            return requests.post(url, params=params, timeout=60)

        refused = register()
        assert refused.status_code == 400
        assert "has not been proven on this machine" in refused.json()["message"]
        prove_again(archive)
        assert register().status_code == 200
        answer = requests.post(f"{server.urls['inference']}/predictions/linear", json=[4.0], timeout=30)
        assert answer.status_code == 200
