"""URLs and parameters of registrations, and archives that come twice."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import requests

from tests.server.archives import write_archive
from tests.server.models.hostile_archives.registering import refusal, register, unpacked
from tests.server.models.hostile_archives.writing import (
    ECHO,
)
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server

URLS = [
    ("", 400),
    (" ", 404),
    (".", 404),
    ("..", 400),
    ("../x.mar", 400),
    ("a/../../x.mar", 400),
    ("/etc/passwd", 403),
    ("/", 403),
    ("//etc/passwd", 403),
    ("~/x.mar", 404),
    ("file:///etc/passwd", 403),
    ("FILE:///etc/passwd", 403),
    ("file://localhost/etc/passwd", 403),
    ("file:///%2e%2e/%2e%2e/etc/passwd", 403),
    ("file:///%00", 400),
    ("file://", 403),
    ("file:/etc/passwd", 404),
    ("http://127.0.0.1:1/x.mar", 400),
    ("https://user:secret@example.org/x.mar", 400),
    ("http://[", 400),
    ("ftp://example.org/x.mar", 403),
    ("gopher://127.0.0.1:6379/_x", 403),
    ("s3://bucket/x.mar", 403),
    ("data:application/zip;base64,UEsFBg==", 404),
    ("%2e%2e/x.mar", 404),
    ("..%2fx.mar", 400),
    ("linear-1.0.mar\0.txt", 400),
    ("linear-1.0.mar/", 409),
    ("linear-1.0.mar/x", 404),
    ("C:\\x.mar", 404),
    ("x" * 5000, 400),
    ("x/" * 5000, 400),
    ("missing-1.0.mar", 404),
    ("folder.mar", 404),
    ("pipe.mar", 404),
    ("link.mar", 403),
    ("dangling.mar", 403),
    ("loop.mar", 400),
    ("linked/passwd", 403),
    ("notes.txt", 400),
]


@pytest.fixture(scope="module")
def strange_files(place: Path) -> None:
    store = place / "store"
    (store / "folder.mar").mkdir()
    os.mkfifo(store / "pipe.mar")
    (store / "link.mar").symlink_to("/etc/passwd")
    (store / "dangling.mar").symlink_to("/nowhere/x.mar")
    (store / "loop.mar").symlink_to("loop.mar")
    (store / "linked").symlink_to("/etc")
    (store / "notes.txt").write_text("no archive")


@pytest.mark.usefixtures("strange_files")
@pytest.mark.parametrize(("url", "status"), URLS, ids=lambda value: repr(value)[:40])
def test_urls_that_lead_out_of_the_store(server: ServerProcess, url: str, status: int) -> None:
    found, message = refusal(server, url=url)
    assert found == status, message
    assert "root:" not in message
    response = requests.post(f"{server.urls['management']}/models", json={"url": url}, timeout=60)
    assert response.status_code == status


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"3", b'{"url": 3}', b'{"url": ["linear-1.0.mar"]}', b'{"url": "\\ud800"}', b"[" * 100_000],
)
def test_bodies_that_name_no_archive(server: ServerProcess, body: bytes) -> None:
    url = f"{server.urls['management']}/models"
    response = requests.post(url, data=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert response.status_code == 400
    assert response.json()["code"] == 400


@pytest.mark.parametrize(
    "asked",
    [
        {"model_name": "../x"},
        {"model_name": "a/b"},
        {"model_name": "x" * 200},
        {"model_name": "a\nb"},
        {"handler": "../x.py"},
        {"handler": "/etc/x.py:handle"},
        {"handler": "a/b.py"},
        {"handler": "x" * 3 + ".py:os.system"},
        {"batch_size": "0"},
        {"batch_size": "many"},
        {"initial_workers": "-1"},
        {"initial_workers": "100000"},
        {"response_timeout": "0"},
        {"startup_timeout": "99999999999"},
    ],
    ids=str,
)
def test_parameters_that_make_no_sense(server: ServerProcess, asked: dict[str, str]) -> None:
    status, message = refusal(server, url="linear-1.0.mar", **({"model_name": "other"} | asked))
    assert (status, len(message) < 500) == (400, True), message


def test_an_archive_whose_models_names_run_into_each_other(running: ServerProcess, place: Path) -> None:
    names = (("a-b", "c"), ("a", "b-c"))
    for name, version in names:
        path = write_archive(place / "store", name, ECHO, version=version)
        assert register(running, url=path.name, initial_workers=1).status_code == 200
        # The two have one file's name: what is registered was read, and is its own from then on.
        path.unlink()
    with running.client() as client:
        for name, version in names:
            assert client.predict(name, json=1, version=version) == name.encode()
            url = f"{running.urls['management']}/models/{name}/{version}"
            assert requests.delete(url, timeout=60).status_code == 200


def test_the_same_version_twice_leaves_the_first_where_it_is(running: ServerProcess, place: Path) -> None:
    path = write_archive(place / "store", "twice", ECHO)
    before = unpacked(place)
    answers: list[int] = []

    def ask() -> None:
        answers.append(register(running, url=path.name, initial_workers=1).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert sorted(answers) == [200, 409, 409, 409]
        with running.client() as client:
            assert client.predict("twice", json=1) == b"twice"
        assert len(unpacked(place)) == len(before) + 1
    finally:
        requests.delete(f"{running.urls['management']}/models/twice", timeout=60)
        path.unlink()
    assert unpacked(place) == before
