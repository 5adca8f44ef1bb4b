"""What the stages write is what `docs/formats.md` says: each key, and each file."""

import json
import shutil
import zipfile

import pytest
import yaml

from tests.formats_page import PAGE, documented, missing, undocumented
from torchport.properties import read_properties
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.targets.checking import check
from torchport.targets.torchport_serve import start
from torchport.verify.evidence import FILE
from torchport.verify.local.proving import verify_archive
from torchport_runtime.requests.arrays import read_npz

RECORDS = ("training.json", "export.json", "signature.json", "parity.json", "measures.json")


def differences(section, record):
    return {"undocumented": undocumented(section, record), "missing": missing(section, record)}


NONE = {"undocumented": [], "missing": []}


@pytest.fixture
def store(linear_archive, tmp_path):
    """The shipped linear in a store of the test's own."""
    return Store(shutil.copytree(linear_archive.parent, tmp_path / "store"))


@pytest.mark.parametrize("name", RECORDS)
def test_the_records_of_the_stages(linear_archive, name):
    folder = Store(linear_archive.parent).build("linear", "1.0")
    assert differences(name, json.loads((folder.path / name).read_text())) == NONE


def test_the_test_vectors(linear_archive):
    folder = Store(linear_archive.parent).build("linear", "1.0")
    index = read_npz(folder.evidence.read_bytes())["index"]
    assert differences(FILE, json.loads(index.tobytes())) == NONE


def test_the_archive(linear_archive):
    with zipfile.ZipFile(linear_archive) as archive:
        manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
        config = yaml.safe_load(archive.read("model-config.yaml"))
        entries = [name for name in archive.namelist() if not name.startswith("torchport_runtime/")]
    assert differences("MANIFEST.json", manifest) == NONE
    assert differences("model-config.yaml", config) == NONE
    listed = PAGE.read_text(encoding="utf-8").partition("\n## The archive\n")[2].partition("\n## ")[0]
    for name in entries:
        assert f"`{name}`" in listed.replace("HANDLER.py", manifest["model"]["handler"])


def test_every_file_of_the_build_folder_is_on_the_page(linear_archive):
    folder = Store(linear_archive.parent).build("linear", "1.0").path
    table = PAGE.read_text(encoding="utf-8").partition("\n## The store\n")[2].partition("\n## ")[0]
    for path in folder.iterdir():
        assert f"`{path.name}{'/' if path.is_dir() else ''}`" in table


def test_what_a_machine_has_verified(store):
    record = verify_archive(store.archive("linear", "1.0")).record
    assert differences(".local_parity", record) == NONE


@pytest.mark.server
def test_what_servers_answered(store):
    check(load_recipe("linear"), store)
    record = json.loads(store.build("linear", "1.0").serving.read_text())
    assert differences("serving.json", record) == NONE


@pytest.mark.server
def test_a_snapshot(store, tmp_path):
    with start(store, tmp_path / "run", arguments=()):
        pass
    (path,) = (tmp_path / "run" / "config").glob("*-snapshot.cfg")
    snapshot = json.loads(read_properties(path)["model_snapshot"])
    assert differences("A server's files", snapshot) == NONE


def test_a_key_that_is_not_on_the_page_is_found():
    record = {
        "graphs": {"main": {"inputs": {"x": {"dtype": "float32", "new": 1}}, "outputs": {}, "dims": {}}}
    }
    assert undocumented("signature.json", record) == ["graphs.main.inputs.x.new"]
    assert missing("signature.json", record) == ["graphs.main.inputs.x.shape"]
    assert ("graphs", "GRAPH", "dims", "DIMENSION") in documented("signature.json")
