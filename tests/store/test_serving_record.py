"""`serving.json` keeps a record for each server, of one archive; what an older one says is read."""

import json

import pytest

from torchport.cli.overview import overview
from torchport.store.hashing import sha256_file
from torchport.store.serving_record import keep_record, read_records
from torchport.verify.report.page import renew_report
from torchport.verify.verifying import verify


def record(server="torchport 0.1.0", archive="a", **more):
    return {
        "server": server,
        "archive_sha256": archive,
        "backend": "onnxruntime",
        "precision": "float32",
        "passed": True,
        "metrics": {"accuracy": 0.5},
        **more,
    }


@pytest.fixture
def folder(store):
    return store.build("tiny", "1.0")


def test_each_server_has_its_record_and_replaces_its_own(folder):
    keep_record(folder, record())
    keep_record(folder, record("TorchServe 0.12.0"))
    keep_record(folder, record("torchport 0.2.0", passed=False))
    keep_record(folder, record("torchport 0.2.0", precision="int8"))
    assert [(r["server"], r["precision"], r["passed"]) for r in read_records(folder)] == [
        ("TorchServe 0.12.0", "float32", True),
        ("torchport 0.2.0", "float32", False),
        ("torchport 0.2.0", "int8", True),
    ]


def test_records_of_another_archive_go(folder):
    keep_record(folder, record("TorchServe 0.12.0"))
    keep_record(folder, record(archive="b"))
    assert [r["server"] for r in read_records(folder)] == ["torchport 0.1.0"]
    assert read_records(folder, "a") == []


def test_a_file_of_before_is_one_record(folder):
    folder.path.mkdir(parents=True)
    before = {k: v for k, v in record("TorchServe 0.12.0").items() if k != "precision"}
    folder.serving.write_text(json.dumps(before))
    assert read_records(folder) == [before]
    keep_record(folder, record())
    assert [r["server"] for r in read_records(folder)] == ["TorchServe 0.12.0", "torchport 0.1.0"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"servers": 3}', '{"servers": [1, {"server": 2}]}', '{"passed": true}']
)
def test_a_damaged_file_is_none(folder, store, content):
    folder.path.mkdir(parents=True)
    folder.serving.write_text(content)
    assert read_records(folder) == []
    (row,) = (row for row in overview(store) if row["recipe"] == "tiny")
    assert row["state"] == "-"


def test_the_page_says_what_servers_answered_and_says_it_anew(built):
    recipe, folder = built()
    verify(recipe, folder)
    certified = {"certificate_sha256": sha256_file(folder.parity)}
    written = folder.report.read_bytes()
    renew_report(folder)
    assert folder.report.read_bytes() == written
    keep_record(folder, record(failures=["request 0: <served>"], passed=False, **certified))
    renew_report(folder)
    once = folder.report.read_bytes()
    assert once.count(b"Over the wire") == 1
    assert b"request 0: &lt;served&gt;" in once
    keep_record(folder, record(**certified))
    keep_record(folder, record("TorchServe 0.12.0", **certified))
    renew_report(folder)
    again = folder.report.read_text()
    assert again.count("Over the wire") == 1
    assert "served&gt;" not in again
    assert "TorchServe 0.12.0" in again
    keep_record(folder, record(archive="b", certificate_sha256="another"))
    renew_report(folder)
    assert folder.report.read_bytes() == written


@pytest.mark.parametrize(
    "content", [None, "{", '{"format": 1}', '{"certificate_sha256": "another", "graphs": []}']
)
def test_a_page_without_its_measures_stays_as_it_is(built, content):
    recipe, folder = built()
    verify(recipe, folder)
    folder.report.write_bytes(b"<p>an older page</p>")
    folder.measures.unlink() if content is None else folder.measures.write_text(content)
    keep_record(folder, record(certificate_sha256=sha256_file(folder.parity)))
    renew_report(folder)
    assert folder.report.read_bytes() == b"<p>an older page</p>"
