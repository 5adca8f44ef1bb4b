"""Archives: made only of what is proven, the same bytes anywhere, and read without trust."""

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.archive_edits import rewrite
from tests.conftest import ROOT, run_stages
from torchport.archive.contents import extract, inspect_archive
from torchport.errors import ArchiveError, RecipeError, StaleError
from torchport.package.configuration import Configuration
from torchport.package.packaging import archive_content, package
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.targets.checking import check
from torchport.verify.verifying import verify


def test_what_travels(linear_archive):
    contents = inspect_archive(linear_archive)
    names = {entry.name for entry in contents.entries}
    assert {
        "MAR-INF/MANIFEST.json",
        "main.onnx",
        "main.pt",
        "model-config.yaml",
        "parity.json",
        "regressor.py",
        "signature.json",
        "torchport_runtime/handler.py",
    } <= names
    assert not any("weights" in name or "pycache" in name or name.endswith(".pt2") for name in names)
    assert contents.problems == ()
    assert (contents.name, contents.version) == ("linear", "1.0")
    assert contents.config["torchport"]["backend"] == "onnxruntime"
    assert contents.config["minWorkers"] == 1


def test_what_the_archive_before_was_told_otherwise_is_said(built, store):
    recipe, folder = built()
    verify(recipe, folder)
    assert package(recipe, store, shadow="torchscript=0.5").changed == ()
    again = package(recipe, store)
    (told,) = again.changed
    assert told.startswith("shadow: ")
    assert "torchscript" in told
    assert package(recipe, store, force=True).changed == ()


def test_what_was_served_of_another_archive_leaves_the_page(built, store):
    recipe, folder = built()
    verify(recipe, folder)
    package(recipe, store)
    check(recipe, store)
    assert "Over the wire" in folder.report.read_text()
    package(recipe, store, force=True)
    assert "Over the wire" in folder.report.read_text()
    package(recipe, store, shadow="torchscript=0.5")
    assert "Over the wire" not in folder.report.read_text()


def test_packaging_needs_a_passing_certificate_of_these_bytes(built, store):
    recipe, folder = built()
    with pytest.raises(StaleError, match="no certificate: torchport verify tiny"):
        package(recipe, store)
    verify(recipe, folder)
    first = package(recipe, store)
    assert first.done
    assert not package(recipe, store).done
    before = first.path.read_bytes()
    (folder.path / "main.onnx").write_bytes(b"changed")
    with pytest.raises(StaleError, match="main.onnx has changed") as caught:
        package(recipe, store)
    assert caught.value.exit_code == 1
    assert first.path.read_bytes() == before


def test_packaging_refuses_a_certificate_that_did_not_pass(built, store):
    recipe, folder = built()
    verify(recipe, folder)
    certificate = json.loads(folder.parity.read_text())
    folder.parity.write_text(json.dumps(certificate | {"passed": False, "failures": ["the reason"]}))
    with pytest.raises(StaleError, match="did not pass parity: the reason"):
        package(recipe, store)


def test_an_archive_carries_what_is_to_serve(built):
    recipe, folder = built()
    verify(recipe, folder)
    config = replace(Configuration.default_of(recipe), backend="pt2").model_config(recipe)
    with pytest.raises(RecipeError, match="'pt2', which is to serve, is not among .*: onnxruntime"):
        archive_content(recipe, folder, ["onnxruntime"], config)


@pytest.mark.road
def test_packaging_names_a_changed_handler(write_recipe, store):
    path = write_recipe(('"regressor"', '"mine"'))
    handler = path.parent / "mine.py"
    shipped = ROOT / "handlers" / "regressor.py"
    shutil.copy(shipped, handler)
    recipe = load_recipe(path)
    run_stages(recipe, store)
    handler.write_text(shipped.read_text() + "\n# changed\n")
    with pytest.raises(StaleError, match=r"these have changed: mine.py: torchport verify tiny"):
        package(recipe, store)


@pytest.mark.road
def test_requirements_travel_and_are_bound(write_recipe, store):
    path = write_recipe(("inputs =", 'requirements = ("tokenizers>=0.20",)\n    inputs ='))
    archive = run_stages(load_recipe(path), store)
    contents = inspect_archive(archive)
    assert not contents.problems
    assert contents.manifest["model"]["requirementsFile"] == "requirements.txt"
    changed = archive.with_name("changed-1.0.mar")
    rewrite(archive, changed, {"requirements.txt": b"something-else\n"})
    assert inspect_archive(changed).problems == ("requirements.txt is not what parity.json was made for",)


def test_a_certificate_that_says_two_things(linear_archive, tmp_path):
    with zipfile.ZipFile(linear_archive) as archive:
        certificate = archive.read("parity.json").replace(
            b'"passed": true', b'"passed": false, "passed": true', 1
        )
    changed = rewrite(linear_archive, tmp_path / "linear-1.0.mar", {"parity.json": certificate})
    with pytest.raises(ArchiveError, match="a name comes twice"):
        inspect_archive(changed)


def test_an_optional_backend_that_fails_parity_is_told_and_stays_out(built, store, monkeypatch):
    from torchport_runtime.backends.backend import Pt2Backend

    settings = ("    inputs =", '    optional_backends = ("pt2",)\n    inputs =')
    recipe, folder = built(settings)
    run = Pt2Backend.run
    monkeypatch.setattr(Pt2Backend, "run", lambda self, x: {n: a * 1.01 for n, a in run(self, x).items()})
    result = verify(recipe, folder)
    assert not result.failures
    assert result.certificate["optional_failures"]
    with pytest.raises(ArchiveError, match="'pt2' did not pass parity"):
        package(recipe, store, backends=["pt2"])
    assert package(recipe, store).done


def test_a_backend_that_was_not_exported(built, store):
    recipe, folder = built(("    inputs =", '    backends = ships = ("onnxruntime",)\n    inputs ='))
    verify(recipe, folder)
    with pytest.raises(RecipeError, match="'pt2' is not among those"):
        package(recipe, store, backends=["pt2"])


@pytest.mark.road
def test_the_same_bytes_from_another_folder_and_a_bystander_survives(write_recipe, tmp_path):
    path = write_recipe()
    bystander = tmp_path / "tmp" / "tiny"
    bystander.mkdir(parents=True)
    (bystander / "precious").write_text("mine")
    # A process each: one would find what it has in memory.
    road = "import sys; from tests.conftest import run_stages\n"
    road += "from torchport.recipe.loading import load_recipe\n"
    road += "from torchport.store.folders import Store; from pathlib import Path\n"
    road += "run_stages(load_recipe(Path(sys.argv[1])), Store(Path('model_store')))"
    environment = {**os.environ, "TMPDIR": str(bystander.parent), "PYTHONPATH": str(ROOT)}
    archives = []
    for place in ("one", "two/deeper"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        command = [sys.executable, "-c", road, shutil.copy(path, folder)]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        archives.append((folder / "model_store" / "tiny-1.0.mar").read_bytes())
    assert (bystander / "precious").read_text() == "mine"
    assert archives[0] == archives[1]


def _manifest(archive: Path) -> dict:
    with zipfile.ZipFile(archive) as opened:
        return json.loads(opened.read("MAR-INF/MANIFEST.json"))


def _config(archive: Path) -> dict:
    with zipfile.ZipFile(archive) as opened:
        return yaml.safe_load(opened.read("model-config.yaml"))


def _with_config(change):
    def changes(archive):
        config = _config(archive)
        change(config)
        return {"model-config.yaml": yaml.safe_dump(config).encode()}

    return changes


def _with_manifest(**model):
    def changes(archive):
        manifest = _manifest(archive)
        manifest["model"] |= model
        return {"MAR-INF/MANIFEST.json": json.dumps(manifest).encode()}

    return changes


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (lambda a: {"main.onnx": b"other"}, "main.onnx is not what parity.json was made for"),
        (lambda a: {"main.onnx": None}, "main.onnx is missing"),
        (lambda a: {"regressor.py": None}, "regressor.py is missing"),
        (lambda a: {"regressor.py": b"import os"}, "regressor.py is not what"),
        (lambda a: {"extra.py": b"import os"}, "extra.py is in the archive, but not in its certificate"),
        (lambda a: {"torchport_runtime/images.so": b"x"}, "torchport_runtime is not what"),
        (
            lambda a: {"torchport_runtime/__pycache__/a.pyc": b"x"},
            "torchport_runtime is not what",
        ),
        (lambda a: {"parity.json": None}, "no parity.json"),
        (_with_config(lambda c: c["torchport"].update(handler={"x": 1})), "handler's options"),
        (_with_config(lambda c: c["torchport"].update(tf32=True)), "options of onnxruntime"),
        (_with_manifest(handler="torchport_runtime/errors.py"), "manifest's handler"),
        (_with_manifest(modelName="other"), "manifest's model other 1.0"),
        (_with_manifest(requirementsFile="main.onnx"), "the manifest says requirementsFile 'main.onnx'"),
        (_with_manifest(serializedFile="main.pt"), "the manifest says serializedFile"),
        (_with_manifest(configFile="onnxruntime.py"), "the manifest says configFile"),
    ],
)
def test_whatever_differs_from_the_certificate_is_named(linear_archive, tmp_path, changes, problem):
    from torchport.archive.model import load

    changed = rewrite(linear_archive, tmp_path / "changed-1.0.mar", changes(linear_archive))
    assert any(problem in found for found in inspect_archive(changed).problems)
    with pytest.raises(ArchiveError):
        load(changed)


def test_settings_that_change_no_result_may_be_changed(linear_archive, tmp_path):
    def tune(config):
        config["minWorkers"] = config["maxWorkers"] = 4
        config["torchport"] |= {"threads": 1, "device": "cpu", "backend": "torchscript"}

    changed = rewrite(linear_archive, tmp_path / "tuned-1.0.mar", _with_config(tune)(linear_archive))
    assert inspect_archive(changed).problems == ()


def hostile(tmp_path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], **options) -> Path:
    path = tmp_path / "hostile-1.0.mar"
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


MANIFEST = ("MAR-INF/MANIFEST.json", b'{"model": {"modelName": "x"}}')


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("../evil.py", b"")], "leads out"),
        ([("/etc/evil", b"")], "leads out"),
        ([("a/../../evil", b"")], "leads out"),
        ([("a\\..\\evil", b"")], "leads out"),
        ([("C:evil", b"")], "leads out"),
        ([(link("main.onnx"), b"/etc/passwd")], "link or a device"),
        ([("a", b""), ("a", b"")], "twice"),
        ([("zeros", b"\0" * 50_000_000)], "grows over"),
    ],
)
def test_hostile_entries_are_refused_before_anything_is_unpacked(tmp_path, entries, reason):
    path = hostile(tmp_path, MANIFEST, *entries, compression=zipfile.ZIP_DEFLATED)
    (tmp_path / "out").mkdir()
    for read in (inspect_archive, lambda p: extract(p, tmp_path / "out")):
        with pytest.raises(ArchiveError, match=reason):
            read(path)
    assert list((tmp_path / "out").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hostile-1.0.mar", "out"]


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (b"{", "cannot be read"),
        (b"[]", "expected an object"),
        (b"{}", "has no 'model'"),
        (b'{"model": 3}', "has no 'model'"),
        (b'{"model": {"modelName": [1]}}', "names no model"),
        (b"[" * 50_000, "cannot be read"),
    ],
)
def test_manifests_of_garbage(tmp_path, manifest, reason):
    with pytest.raises(ArchiveError, match=reason):
        inspect_archive(hostile(tmp_path, ("MAR-INF/MANIFEST.json", manifest)))


@pytest.mark.parametrize(
    "certificate",
    [
        b'{"passed": true}',
        b'{"passed": true, "binding": null}',
        b'{"passed": true, "binding": {"artifacts": [], "handler": [], "assets": 3}}',
        b"3",
    ],
)
def test_certificates_of_garbage(linear_archive, tmp_path, certificate):
    changed = rewrite(linear_archive, tmp_path / "x-1.0.mar", {"parity.json": certificate})
    with pytest.raises(ArchiveError):
        inspect_archive(changed)


def test_truncated_and_damaged_archives(linear_archive, tmp_path):
    content = linear_archive.read_bytes()
    path = tmp_path / "broken-1.0.mar"
    for broken in (b"", b"PK", content[: len(content) // 2], b"\0" * 1000):
        path.write_bytes(broken)
        with pytest.raises(ArchiveError, match="or truncated"):
            inspect_archive(path)
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", os.urandom(500) + b"a" * 500)
    damaged = bytearray(deflated.getvalue())
    damaged[200] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(ArchiveError, match="damaged"):
        inspect_archive(path)


def test_inspecting_runs_nothing(linear_archive, tmp_path):
    """Not the handler, not the runtime's copy, no pickle, no YAML tag."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')".encode()
    tag = f"!!python/object/apply:os.mknod [{str(mark)!r}]".encode()
    changes = {"regressor.py": code, "torchport_runtime/__init__.py": code}
    inspect_archive(rewrite(linear_archive, tmp_path / "a-1.0.mar", changes))
    with pytest.raises(ArchiveError):
        inspect_archive(rewrite(linear_archive, tmp_path / "b-1.0.mar", {"model-config.yaml": tag}))
    assert not mark.exists()


@pytest.mark.road
def test_two_versions_live_in_one_store(write_recipe, store):
    for version in ("1.0", "1.1"):
        run_stages(load_recipe(write_recipe(('"1.0"', f'"{version}"'))), store)
    assert list(Store(store.path).archives()["tiny"]) == ["1.0", "1.1"]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, make):
    path = tmp_path / "x-1.0.mar"
    make(path)
    with pytest.raises(ArchiveError, match="is no regular file"):
        inspect_archive(path)
    with pytest.raises(ArchiveError, match="is no regular file"):
        extract(path, tmp_path / "out")
