"""Archives proven again where they are to serve: what changes the numbers is found, and the server asks."""

import json
import re
import shutil

import numpy as np
import pytest
import requests

from tests.archive_edits import rewrite
from torchport.archive.contents import inspect_archive
from torchport.archive.local_record import record_path, require_local_parity
from torchport.archive.model import ArchivedModel, load
from torchport.errors import ArchiveError, BackendError
from torchport.server.models.admission import require_trusted
from torchport.server.settings.settings import ServerSettings
from torchport.store import machine
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start
from torchport.verify.evidence import FILE
from torchport.verify.local import proving
from torchport.verify.local.proving import verify_archive
from torchport_runtime.backends.cuda import cuda_device_count


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


def edit_record(archive, edit):
    path = record_path(archive)
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def failures(record):
    return [failure for result in record["results"] for failure in result["failures"]]


def test_what_the_environment_says_of_tensorrt_is_no_part_of_it(archive, monkeypatch):
    monkeypatch.setenv("TORCHPORT_TENSORRT", "true")
    monkeypatch.setattr(machine, "gpus", lambda: ["A GPU"])
    monkeypatch.setattr(ArchivedModel, "devices", {"main": "cuda:0"})
    asked = []

    def loaded(archive, **options):
        asked.append((options["device"], options["tensorrt"]))
        return load(archive, **options | {"device": "cpu"})

    monkeypatch.setattr(proving, "load", loaded)
    assert verify_archive(archive).record["passed"]
    assert set(asked) == {("auto", False), ("cpu", False), ("cuda", False)}


def test_an_archive_is_proven_once_on_a_machine(archive):
    result = verify_archive(archive)
    assert result.done
    assert result.record["passed"]
    assert {r["backend"] for r in result.record["results"]} == {"onnxruntime", "torchscript"}
    assert all(r["cases"] > 5 and 0 < r["worst_error_to_bound"] < 1 for r in result.record["results"])
    assert result.record["results"][0]["requests_compared"] > 0
    require_local_parity(archive, "onnxruntime")
    assert not verify_archive(archive).done
    assert verify_archive(archive, force=True).done


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
    record = verify_archive(archive).record
    assert not record["passed"]
    assert any(re.search(said, failure) for failure in failures(record)), failures(record)
    with pytest.raises(ArchiveError, match="did not pass on this machine: graph main"):
        require_local_parity(archive, "onnxruntime")


def test_a_handler_that_answers_otherwise_does_not_pass(archive, monkeypatch):
    monkeypatch.setattr(ArchivedModel, "predict", lambda self, body, **params: [0.0])
    assert any(
        "request 0: the answer is [0.0], proven was" in f for f in failures(verify_archive(archive).record)
    )


@pytest.mark.parametrize("error", [ZeroDivisionError("of the handler's own"), SystemExit(0)])
def test_a_handler_that_breaks_is_told(archive, monkeypatch, error):
    def broken(self, body, **params):
        raise error

    monkeypatch.setattr(ArchivedModel, "predict", broken)
    record = verify_archive(archive).record
    assert failures(record) == [f"the handler failed: {type(error).__name__}: {error}"]
    assert len(record["results"]) == 2


def test_an_archive_that_nothing_here_can_run_is_not_proven(archive, monkeypatch):
    monkeypatch.setattr(proving, "library_versions", lambda *names: {})
    with pytest.raises(ArchiveError, match="nothing that it carries can be run here: install onnxruntime or"):
        verify_archive(archive)
    assert not record_path(archive).exists()


@pytest.fixture
def on_gpus(monkeypatch):
    """A machine with GPUs of these names; what is asked to run on one runs on the CPU and says otherwise."""

    def pretend(*names):
        monkeypatch.setattr(machine, "gpus", lambda: list(names))
        monkeypatch.setattr(
            proving, "load", lambda archive, **options: load(archive, **options | {"device": "cpu"})
        )
        monkeypatch.setattr(ArchivedModel, "devices", {"main": "cuda:0"})

    return pretend


def test_it_is_proven_on_each_kind_of_gpu(archive, on_gpus):
    on_gpus("One", "One", "Other")
    record = verify_archive(archive).record
    own = [r["device"] for r in record["results"] if r["backend"] == "onnxruntime"]
    assert own == ["cpu", "cuda", "cuda:2"]
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:2"):
        require_local_parity(archive, "onnxruntime", device=device)
    with pytest.raises(ArchiveError, match="was not proven on cuda:3, which device 'cuda:3' may come to"):
        require_local_parity(archive, "onnxruntime", device="cuda:3")


@pytest.mark.parametrize(
    ("proven", "accepted"),
    [
        (["cpu"], ["cpu"]),
        (["cuda"], ["cuda:0", "cuda:1"]),
        (["cuda:2"], ["cuda:2"]),
        (["cuda", "cuda:2"], ["cuda", "cuda:0", "cuda:1", "cuda:2"]),
        (["cpu", "cuda"], ["cpu", "cuda:0", "cuda:1"]),
    ],
)
def test_a_record_is_of_the_devices_that_serve(archive, on_gpus, proven, accepted):
    on_gpus("One", "One", "Other")
    verify_archive(archive)
    edit_record(archive, lambda r: r.update(results=[x for x in r["results"] if x["device"] in proven]))
    for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:2"):
        if device in accepted:
            require_local_parity(archive, "onnxruntime", device=device)
        else:
            with pytest.raises(ArchiveError, match=f"onnxruntime was not proven on .*{device!r} may come to"):
                require_local_parity(archive, "onnxruntime", device=device)


def test_what_was_proven_on_a_gpu_says_nothing_of_a_machine_without(archive):
    verify_archive(archive)
    edit_record(archive, lambda r: [x.update(device="cuda") for x in r["results"]])
    for device in ("auto", "cpu"):
        with pytest.raises(ArchiveError, match="onnxruntime was not proven on cpu,"):
            require_local_parity(archive, "onnxruntime", device=device)


@pytest.mark.skipif(cuda_device_count() > 0, reason="the backends can use this machine's")
def test_gpus_that_the_backend_cannot_use_are_passed_over(archive, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ["A GPU"])
    record = verify_archive(archive).record
    assert record["passed"]
    assert {result["device"] for result in record["results"]} == {"cpu"}
    assert "'cuda' was asked for, but" in record["without_gpu"][0]["reason"]
    require_local_parity(archive, "onnxruntime", device="auto")
    with pytest.raises(ArchiveError, match="not proven on cuda,"):
        require_local_parity(archive, "onnxruntime", device="cuda")


def test_a_gpu_that_fails_is_not_passed_over(archive, on_gpus, monkeypatch):
    """Out of memory now is not so for ever, and `auto` would come to the GPU then."""
    on_gpus("A GPU")

    def loaded(archive, **options):
        if options["device"] != "cpu":
            raise BackendError("out of memory")
        return load(archive, **options)

    monkeypatch.setattr(proving, "load", loaded)
    record = verify_archive(archive).record
    assert not record["passed"]
    assert set(failures(record)) == {"out of memory"}
    with pytest.raises(ArchiveError, match="out of memory"):
        require_local_parity(archive, "onnxruntime", device="auto")


def each(**changes):
    return lambda record: [result.update(changes) for result in record["results"]]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda r: r.update(passed=False), "did not pass on this machine: the record says so"),
        (lambda r: r.update(passed="yes"), "did not pass"),
        (each(passed=False), "onnxruntime on cpu: the record says so"),
        (each(passed=1), "onnxruntime on cpu: the record says so"),
        (each(cases=0), "onnxruntime on cpu: nothing was compared"),
        (each(worst_error_to_bound="inf"), "the worst error is inf of its bound"),
        (each(worst_error_to_bound=1.01), "the worst error is 1.01 of its bound"),
        (each(worst_error_to_bound=float("nan")), "the worst error is nan of its bound"),
        (each(failures=["the reason"]), "did not pass on this machine: the reason"),
        (each(failures={}), "damaged"),
        (each(failures=""), "damaged"),
        (each(cases="19"), "damaged"),
        (lambda r: r["results"][1].update(passed=False), "torchscript on cpu: the record says so"),
        (lambda r: r["results"].append(r["results"][0] | {"failures": ["x"]}), "did not pass .*: x"),
        (lambda r: r.update(torchport="0.0.0"), "since it was proven, torchport changed"),
        (lambda r: r.update(results=[]), "onnxruntime was not run; proven here was nothing"),
    ],
)
def test_a_record_counts_only_where_all_of_it_passed(archive, edit, said):
    verify_archive(archive)
    edit_record(archive, edit)
    with pytest.raises(ArchiveError, match=said):
        require_local_parity(archive, "onnxruntime", device="cpu")
    assert verify_archive(archive).done
    require_local_parity(archive, "onnxruntime", device="cpu")


def test_a_backend_that_the_archive_does_not_carry_is_said_to_be_that(archive):
    verify_archive(archive)
    with pytest.raises(ArchiveError, match="pt2 was not run; proven here was onnxruntime, torchscript"):
        require_local_parity(archive, "pt2")


def test_a_record_that_is_no_file_is_told(archive):
    record_path(archive).mkdir(parents=True)
    for act in (lambda: verify_archive(archive), lambda: require_local_parity(archive, "onnxruntime")):
        with pytest.raises(ArchiveError, match="is no file: remove it"):
            act()


def test_what_changed_since_is_named(archive, monkeypatch):
    with pytest.raises(ArchiveError, match="has not been proven on this machine"):
        require_local_parity(archive, "onnxruntime")
    verify_archive(archive)
    path = record_path(archive)
    record = json.loads(path.read_text())
    for change, said in (
        ({"machine": record["machine"] | {"processor": "another"}}, "the machine's processor"),
        (
            {"libraries": {"onnxruntime": {"onnxruntime": "1.0"}}},
            "numpy, onnxruntime(, onnxruntime-gpu)?, pillow",
        ),
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
    versions = proving.library_versions
    monkeypatch.setattr(
        proving, "library_versions", lambda *names: versions(*(n for n in names if n != "torch"))
    )
    record = verify_archive(archive).record
    assert record["passed"]
    assert record["not_installed"] == ["torchscript"]
    require_local_parity(archive, "onnxruntime")
    monkeypatch.undo()
    with pytest.raises(ArchiveError, match="torchscript was not installed then; proven here was onnxruntime"):
        require_local_parity(archive, "torchscript")


def test_evidence_is_bound_to_the_certificate(archive, linear_archive):
    rewrite(linear_archive, archive, {FILE: b"other"})
    assert "evidence.npz is not what parity.json was made for" in inspect_archive(archive).problems
    rewrite(linear_archive, archive, {FILE: None})
    assert "evidence.npz is missing" in inspect_archive(archive).problems
    with pytest.raises(ArchiveError, match="package it again"):
        verify_archive(archive)


def test_an_archive_of_before_there_was_evidence_says_so(archive, linear_archive):
    certificate = json.loads((linear_archive.parent / ".build/linear/1.0/parity.json").read_text())
    del certificate["evidence"]
    rewrite(linear_archive, archive, {FILE: None, "parity.json": json.dumps(certificate).encode()})
    assert inspect_archive(archive).problems == ()
    with pytest.raises(ArchiveError, match="verify and package it again"):
        verify_archive(archive)


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
        verify_archive(archive)
        assert register().status_code == 200
        answer = requests.post(f"{server.urls['inference']}/predictions/linear", json=[4.0], timeout=30)
        assert answer.status_code == 200


def test_a_server_asks_for_the_device_that_it_is_told_to_use(archive, monkeypatch):
    settings = ServerSettings(model_store=archive.parent, require_local_parity=True)
    verify_archive(archive)
    contents = inspect_archive(archive)
    assert require_trusted(contents, settings)
    monkeypatch.setenv("TORCHPORT_DEVICE", "cuda:99")
    with pytest.raises(ArchiveError, match="onnxruntime was not proven on cuda:99"):
        require_trusted(contents, settings)
