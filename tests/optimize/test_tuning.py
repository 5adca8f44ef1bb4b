"""Tuning: what may be measured of a proven model, and what becomes of it in an archive."""

import json
import shutil
import textwrap
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest

from tests.conftest import TINY, run_stages
from tests.formats_page import missing, undocumented
from tests.serving_machine import DEFAULT, FOUR, INT8, ROUNDS, TWO, Machine, figures
from torchport.archive.contents import inspect_archive
from torchport.cli.app import main
from torchport.errors import StaleError, TuningError, TuningRequestError
from torchport.model.int8_certificate import int8_binding
from torchport.optimize.tune import tuning
from torchport.optimize.tune.candidates import candidates
from torchport.optimize.tune.measuring import Bench
from torchport.optimize.tune.search import Effort
from torchport.optimize.tune.slo import Slo
from torchport.optimize.tune.tuning import require, reset, tune
from torchport.package.configuration import Configuration
from torchport.package.packaging import archive_content, package
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.store.hashing import sha256_file
from torchport.store.serving_record import read_records
from torchport.targets.checking import check
from torchport.verify.verifying import verify

ONE_WORKER = textwrap.dedent(TINY).replace("import Recipe", "import Recipe, Serving") + (
    "    serving = Serving(workers=1)\n"
)
"""The recipe whose default is `DEFAULT`; without a number, the server chooses."""


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A recipe, trained, exported and proven once: that takes seconds."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "tiny_recipe.py").write_text(ONE_WORKER, encoding="utf-8")
    run_stages(load_recipe(folder / "tiny_recipe.py"), Store(folder))
    return folder


@pytest.fixture
def proven(road, store):
    """The same in a store of the test's own."""
    shutil.copytree(road / ".build", store.path / ".build")
    return load_recipe(road / "tiny_recipe.py"), store.build("tiny", "1.0")


def test_candidates_are_what_the_archive_ships_and_is_proven(proven):
    recipe, folder = proven
    found = candidates(recipe, folder, cores=4)
    assert found.default == DEFAULT
    assert {c.backend for c in found.shapes} == set(recipe.ships)
    assert set(found.refused) == {"pt2", "int8"}
    assert "does not carry it" in found.refused["pt2"]
    assert "no INT8 version" in found.refused["int8"]
    assert all(c.threads * c.workers <= 8 for c in found.shapes)
    assert not any(c.alike(found.default, 4) for c in found.shapes)
    assert len(set(found.shapes)) == len(found.shapes)
    assert found.batch_sizes == [1, 2, 4, 8, 16, 32]


def test_a_default_that_leaves_its_workers_to_the_server_is_not_measured_twice(built):
    recipe, folder = built()
    verify(recipe, folder)
    found = candidates(recipe, folder, cores=4)
    assert found.default == replace(DEFAULT, workers=0)
    assert FOUR not in found.shapes
    assert TWO in found.shapes
    assert found.default.on(4) == FOUR


def test_batches_are_no_larger_than_the_graph_takes(built):
    recipe, folder = built(("name, version", 'dims = {"batch": (1, 5)}\n    name, version'))
    verify(recipe, folder)
    assert candidates(recipe, folder).batch_sizes == [1, 2, 4]


def test_a_backend_that_did_not_pass_is_refused_and_never_measured(proven, store):
    recipe, folder = proven
    certificate = json.loads(folder.parity.read_text())
    for result in certificate["results"]:
        result["passed"] = result["backend"] != "torchscript"
    folder.parity.write_text(json.dumps(certificate))
    found = candidates(recipe, folder)
    assert found.refused["torchscript"] == "it did not pass parity"
    assert {c.backend for c in found.shapes} == {"onnxruntime"}
    with pytest.raises(TuningRequestError, match="torchscript: it did not pass parity"):
        candidates(recipe, folder, backends=["torchscript"])


def test_nothing_is_measured_without_a_certificate_of_these_bytes(built, store):
    recipe, folder = built()
    machine = Machine({})
    with pytest.raises(StaleError, match="no certificate"):
        tune(recipe, store, slo=Slo(), budget_s=60, serve=machine.serve)
    verify(recipe, folder)
    (folder.path / "main.onnx").write_bytes(b"another")
    with pytest.raises(StaleError, match="main.onnx has changed"):
        tune(recipe, store, slo=Slo(), budget_s=60, serve=machine.serve)
    assert not machine.started


def test_the_recipes_first_backend_must_be_proven(proven):
    recipe, folder = proven
    certificate = json.loads(folder.parity.read_text())
    for result in certificate["results"]:
        result["passed"] = result["backend"] != "onnxruntime"
    folder.parity.write_text(json.dumps(certificate))
    with pytest.raises(StaleError, match="onnxruntime in float32 by default"):
        candidates(recipe, folder)


def write_int8(recipe, folder, now=0.97):
    """A certificate of an INT8 version, whose graph is the float32 one: what it computes matters not."""
    shutil.copy(folder.path / "main.onnx", folder.path / "main.int8.onnx")
    certificate = {
        "binding": int8_binding(recipe, folder),
        "gate": {"max_drop": 0.005, "goals": {"accuracy": ">= 0.9"}},
        "metrics": {"accuracy": {"float32": 0.97, "int8": now}},
        "agreement": {"compared": 10, "agreed": 10},
        "method": "minmax",
    }
    (folder.path / "int8.json").write_text(json.dumps(certificate))


def test_int8_is_chosen_only_where_it_is_allowed(proven):
    recipe, folder = proven
    write_int8(recipe, folder)
    shown = candidates(recipe, folder)
    assert "int8" not in shown.refused
    assert INT8.kind in {c.kind for c in shown.shapes}
    assert INT8.kind not in shown.choosable
    assert INT8.kind in candidates(recipe, folder, allow_int8=True).choosable
    only = candidates(recipe, folder, precisions=["int8"])
    assert only.choosable == {INT8.kind} == {c.kind for c in only.shapes}


def test_int8_that_is_stale_or_breaks_its_gate_is_refused(proven):
    recipe, folder = proven
    write_int8(recipe, folder, now=0.9)
    found = candidates(recipe, folder, allow_int8=True)
    assert "0.0700 worse" in found.refused["int8"]
    assert INT8.kind not in {c.kind for c in found.shapes} | found.choosable
    write_int8(recipe, folder)
    (folder.path / "main.int8.onnx").write_bytes(b"another")
    assert "main.int8.onnx" in candidates(recipe, folder, allow_int8=True).refused["int8"]


@pytest.mark.parametrize("wrong", [{"backends": ["onnx"]}, {"precisions": ["int4"]}])
def test_unknown_names_are_errors(proven, wrong):
    with pytest.raises(TuningRequestError, match="onnxruntime|int8"):
        candidates(*proven, **wrong)


def test_what_the_environment_overrides_is_not_measured(proven, store, monkeypatch):
    monkeypatch.setenv("TORCHPORT_THREADS", "1")
    with pytest.raises(TuningRequestError, match="TORCHPORT_THREADS"):
        tune(proven[0], store, slo=Slo(), budget_s=60)


# What becomes of it.


def tuned(recipe, store, *, slo=(), most=None, **options):
    """A tuning in which two workers of one thread give most."""
    machine = Machine(most or {TWO: 900})
    return tune(
        recipe, store, slo=Slo.parse(slo), budget_s=1e6, serve=machine.serve, effort=ROUNDS, **options
    )


def config(path):
    contents = inspect_archive(path)
    assert contents.problems == ()
    return contents.config


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr("torchport.optimize.tune.candidates.available_cores", lambda: 2)


def test_the_archive_is_packaged_as_it_was_tuned(proven, store, two_cores):
    recipe, folder = proven
    plain = sha256_file(package(recipe, store).path)
    result = require(tuned(recipe, store))
    assert result.record["chosen"] == TWO.to_json()
    assert undocumented("tuning.json", result.record) == missing("tuning.json", result.record) == []
    first = package(recipe, store)
    assert first.tuning.configuration == TWO
    served = config(first.path)
    assert (served["minWorkers"], served["maxWorkers"], served["batchSize"]) == (2, 2, 8)
    assert (served["torchport"]["backend"], served["torchport"]["threads"]) == ("onnxruntime", 1)
    assert not package(recipe, store).done
    assert reset(recipe, store)
    assert not reset(recipe, store)
    assert package(recipe, store).sha256 == plain
    assert not list(folder.path.glob("tuning*"))


def test_where_the_default_stays_the_archive_stays_too(proven, store, two_cores):
    recipe, _ = proven
    plain = package(recipe, store).sha256
    result = tuned(recipe, store, most={DEFAULT: 900})
    assert result.record["chosen"] == result.record["default"]
    assert package(recipe, store).sha256 == plain


def test_a_tuning_of_other_bytes_is_left_out_and_named(proven, store, two_cores):
    recipe, folder = proven
    tuned(recipe, store)
    path = folder.path / "tuning.json"
    record = json.loads(path.read_text())
    record["binding"]["artifacts"]["main.onnx"] = "0" * 64
    path.write_text(json.dumps(record))
    result = package(recipe, store)
    assert result.tuning.configuration is None
    assert "main.onnx" in result.tuning.why_not
    assert config(result.path)["minWorkers"] == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"chosen": {"backend": "onnxruntime"}}, "cannot be: "),
        ({"chosen": TWO.to_json() | {"workers": -1}}, "workers is -1"),
        ({"chosen": TWO.to_json() | {"workers": 10**6}}, "workers 1000000: at most 2 is measured on 2 cores"),
        ({"chosen": TWO.to_json() | {"threads": 64}}, "threads 64: at most 2"),
        ({"chosen": TWO.to_json() | {"batch_size": 10**9}}, "batch_size 1000000000: at most 32"),
        ({"chosen": TWO.to_json() | {"batch_size": "8"}}, "batch_size is '8'"),
        ({"chosen": TWO.to_json() | {"backend": "pt2"}}, "it is of pt2, which the archive does not carry"),
        ({"chosen": TWO.to_json() | {"backend": ["pt2"]}}, "cannot be: backend"),
        ({"cores": 10**9}, "cores 1000000000"),
        ({"cores": "2"}, "cores 2: 1 to"),
        *(({name: other}, "cannot be read") for name in ("chosen", "binding") for other in (None, [1], "x")),
    ],
)
def test_a_damaged_tuning_is_left_out_and_named(proven, store, two_cores, damage, said):
    recipe, folder = proven
    tuned(recipe, store)
    path = folder.path / "tuning.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    result = package(recipe, store)
    assert result.tuning.configuration is None
    assert said in result.tuning.why_not
    assert config(result.path)["torchport"]["backend"] == "onnxruntime"
    path.write_text("{")
    assert "cannot be read" in package(recipe, store).tuning.why_not


def test_a_tuning_gives_way_to_what_is_asked_for(proven, store, two_cores):
    recipe, _ = proven
    tuned(recipe, store)
    other = package(recipe, store, backends=["torchscript"])
    assert "torchscript is to serve" in other.tuning.why_not
    assert config(other.path)["torchport"]["backend"] == "torchscript"
    assert package(recipe, store, backends=["onnxruntime"]).tuning.configuration == TWO


def test_an_int8_tuning_ends_with_its_int8_version(proven, store, two_cores):
    recipe, folder = proven
    write_int8(recipe, folder)
    tuned(recipe, store, most={INT8: 900}, precisions=["int8"])
    (folder.path / "int8.json").unlink()
    result = package(recipe, store)
    assert "int8" in result.tuning.why_not
    assert config(result.path)["torchport"].get("precision", "float32") == "float32"


def test_the_same_question_is_not_measured_twice(proven, store, two_cores):
    recipe, _ = proven
    assert tuned(recipe, store).done
    assert not tuned(recipe, store).done
    assert tuned(recipe, store, slo=["p99=1s"]).done
    assert tuned(recipe, store, slo=["p99=1s"], force=True).done


def test_nothing_within_the_slo_changes_nothing(proven, store, two_cores):
    recipe, folder = proven
    tuned(recipe, store)
    before = {path.name: path.read_bytes() for path in folder.path.glob("tuning*")}
    with pytest.raises(
        TuningError, match=r"p99 <= 1 ms.*nearest: .* 1 connections.*nothing was changed"
    ) as caught:
        require(tuned(recipe, store, slo=["p99=1ms"]))
    assert caught.value.exit_code == 1
    assert {path.name: path.read_bytes() for path in folder.path.glob("tuning*")} == before


def test_the_picture_and_the_page_show_every_configuration(proven, store, two_cores):
    recipe, folder = proven
    result = tuned(recipe, store, slo=["p99=50ms"])
    picture = (folder.path / "tuning.svg").read_text()
    assert picture.count("<title>") == len(result.record["points"])
    for said in (str(TWO), ">default<", ">chosen<", "p99 50 ms", "prefers-color-scheme: dark"):
        assert said in picture
    page = (folder.path / "tuning.html").read_text()
    assert picture.strip() in page
    assert "refused: the archive does not carry it" in page


@pytest.mark.parametrize("configuration", [INT8, replace(TWO, backend="torchscript", batch_size=1)])
def test_each_kind_is_served_from_its_own_artifacts(proven, configuration):
    recipe, folder = proven
    write_int8(recipe, folder)
    content = archive_content(recipe, folder, recipe.ships, DEFAULT.model_config(recipe))
    with Bench(recipe, content, warm_up=0.1) as bench, bench.serve(configuration) as ask:
        (archive,) = bench.store.path.glob("*.mar")
        served, names = config(archive), {entry.name for entry in inspect_archive(archive).entries}
        measured = ask(2, 0.2)
    assert (measured.errors, measured.reason) == (0, "")
    assert served == configuration.model_config(recipe)
    own = "main.int8.onnx" if configuration == INT8 else "main.pt"
    assert names & {"main.onnx", "main.pt", "main.pt2", own} == {own}


def test_what_answered_nothing_is_written_down_too(proven, store, two_cores):
    class Refuses(Machine):
        @contextmanager
        def serve(self, configuration):
            with super().serve(configuration) as ask:
                none = figures(0, float("inf"), errors=2)
                yield lambda n, s: ask(n, s) if configuration != TWO else none

    recipe, folder = proven
    machine = Refuses({FOUR: 900})
    result = tune(recipe, store, slo=Slo(), budget_s=1e6, serve=machine.serve, effort=ROUNDS)
    record = json.loads((folder.path / "tuning.json").read_text(), parse_constant=pytest.fail)
    assert {"p50": None, "p95": None, "p99": None} in [p["latency_ms"] for p in record["points"]]
    assert result.record == record


def test_the_whole_road_through_a_real_server(write_recipe, store, monkeypatch):
    """Every figure is the real server's, as are the answers of the archive that is made of the choice."""
    parameter = ("Request(json=[1.0, 2.0, 3.0],", 'Request(json=[1.0, 2.0, 3.0], params={"k": "1"},')
    recipe = load_recipe(write_recipe(parameter))
    run_stages(recipe, store)
    monkeypatch.setattr("torchport.optimize.tune.candidates.BATCH_SIZES", (1, 8))
    effort = Effort(quick_s=0.1, final_s=0.2, rounds=2, finalists=1, shapes=1, ladder=(1, 4))
    result = require(
        tune(
            recipe,
            store,
            slo=Slo.parse(["p99=30s"]),
            budget_s=1,
            backends=["onnxruntime"],
            effort=effort,
        )
    )
    assert result.outcome is not None
    assert all(p["answers"] and not p["errors"] for p in result.record["points"])
    measured = {p.configuration for p in result.outcome.points if p.rounds}
    assert Configuration.default_of(recipe) in measured
    chosen = Configuration(**result.record["chosen"])
    assert chosen in measured
    archive = package(recipe, store).path
    assert config(archive)["torchport"]["threads"] == chosen.threads
    served = config(archive)
    # The default leaves the number to the server.
    assert served["minWorkers"] == (chosen.workers or 1)
    assert served.get("torchport_workers") == (None if chosen.workers else "auto")
    checked = check(recipe, store)
    assert not checked.failures


def command(monkeypatch, *arguments):
    """The command in this process; its exit code."""
    monkeypatch.setattr("sys.argv", ["torchport", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_the_command_measures_packages_and_checks(proven, store, two_cores, monkeypatch, capsys):
    recipe, folder = proven
    machine = Machine({TWO: 900})
    with_machine = partial(tune, serve=machine.serve, effort=ROUNDS)
    monkeypatch.setattr(tuning, "tune", with_machine)
    given = ("tune", recipe.path, "--store", store.path)
    assert command(monkeypatch, *given, "--slo", "p99=50ms") == 0
    said = capsys.readouterr().out
    for line in (f"{TWO}: its throughput is", "refused: pt2", "as tuned", "1 answers as in process"):
        assert line in said
    assert config(store.archive("tiny", "1.0"))["minWorkers"] == 2
    assert [record["passed"] for record in read_records(folder)] == [True]
    assert command(monkeypatch, *given, "--slo", "p99=1ms") == 1
    assert "nearest" in capsys.readouterr().err
    assert config(store.archive("tiny", "1.0"))["minWorkers"] == 2
    assert command(monkeypatch, *given, "--reset") == 0
    assert config(store.archive("tiny", "1.0"))["minWorkers"] == 1


@pytest.mark.parametrize(
    "wrong", [("--slo", "p99=fast"), ("--budget", "soon"), ("--backend", "onnx"), ("--precision", "int4")]
)
def test_what_the_command_cannot_read_exits_2(proven, store, monkeypatch, wrong):
    assert command(monkeypatch, "tune", proven[0].path, "--store", store.path, *wrong) == 2
    assert not store.archive("tiny", "1.0").exists()
