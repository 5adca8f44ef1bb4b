"""Archives and URLs that are refused with their reason, before any code of theirs runs.

Whatever a handler here would do, it would leave a mark first; no test may find it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.server.archives import write_archive
from torchport.errors import ServerError
from torchport.server_process import ServerProcess, start
from torchport.store import Store

MANIFEST = "MAR-INF/MANIFEST.json"
HANDLER = "model_handler.py"

ECHO = """
    def handle(data, context):
        return data and [context.model_name for _ in data]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store, the server's temporary folder, and beside them the mark of code that ran."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("store", "tmp", "outside"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def running(place: Path, linear_archive: Path) -> Iterator[ServerProcess]:
    shutil.copy(linear_archive, place / "store")
    with start(
        Store(place / "store"),
        place / "run",
        settings={"default_workers_per_model": "1", "enable_model_api": "true"},
        arguments=("--ncs", "--no-grpc"),
        environment={"TMPDIR": str(place / "tmp")},
    ) as server:
        yield server


def unpacked(place: Path) -> list[str]:
    """Folders of the models that the server has unpacked, and whatever else is beside them."""
    return sorted(path.name for path in (place / "tmp").glob("torchport-serve-*/*"))


@pytest.fixture
def server(running: ServerProcess, place: Path) -> Iterator[ServerProcess]:
    """The server; afterwards it is as before, and nothing was written that should not be."""
    before, said = unpacked(place), len(running.log())
    yield running
    ran = (place / "mark").exists()
    (place / "mark").unlink(missing_ok=True)
    with running.client() as client:
        assert client.predict("linear", json=[4.0]) == pytest.approx([14.165], abs=0.1)
        names = list(client.models())
    # So that one that fails fails alone.
    for name in set(names) - {"linear"}:
        requests.delete(f"{running.urls['management']}/models/{name}", timeout=60)
    assert not ran
    assert names == ["linear"]
    assert running.process.poll() is None
    assert unpacked(place) == before
    assert sorted(path.name for path in place.iterdir()) == ["outside", "run", "store", "tmp"]
    assert list((place / "outside").iterdir()) == []
    assert "Traceback" not in running.log()[said:]


def register(server: ServerProcess, **asked: Any) -> requests.Response:
    return requests.post(f"{server.urls['management']}/models", params=asked, timeout=60)


def refusal(server: ServerProcess, **asked: Any) -> tuple[int, str]:
    """Status and message of a registration that must fail."""
    response = register(server, **asked)
    body = response.json()
    assert body["code"] == response.status_code
    return response.status_code, body["message"]


Entries = dict[str | zipfile.ZipInfo, bytes]


def manifest(**model: object) -> bytes:
    described = {"modelName": "hostile", "modelVersion": "1.0", "handler": HANDLER} | model
    return json.dumps({"runtime": "python", "model": described}).encode()


def leaves_mark(place: Path) -> bytes:
    return f"open({str(place / 'mark')!r}, 'w').close()\n\ndef handle(data, context): return data\n".encode()


def written(
    place: Path, entries: Entries, *, change: Callable[[zipfile.ZipFile], None] | None = None
) -> Path:
    """`hostile-1.0.mar` in the store: a whole archive, and what `entries` add to it or change in it."""
    path = place / "store" / "hostile-1.0.mar"
    whole: Entries = {MANIFEST: manifest(), HANDLER: leaves_mark(place)} | entries
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in whole.items():
            archive.writestr(name, content)
        if change is not None:
            change(archive)
    return path


@pytest.fixture
def refused(server: ServerProcess, place: Path) -> Iterator[Callable[..., str]]:
    """Write an archive, register it, get the message of its refusal."""
    path = place / "store" / "hostile-1.0.mar"

    def ask(entries: Entries | bytes, **more: Any) -> str:
        if isinstance(entries, bytes):
            path.write_bytes(entries)
        else:
            written(place, entries, **more)
        status, message = refusal(server, url=path.name, initial_workers=1)
        assert status == 400, message
        assert str(place) not in message
        assert len(message) < 1000
        return message

    yield ask
    path.unlink(missing_ok=True)


def named(name: str, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    """An entry of any name: `ZipInfo` itself ends one at a NUL."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.external_attr = (kind | 0o777) << 16
    return info


# Names.

NAMES = {
    "../escaped.py": "leads out",
    "../../outside/escaped": "leads out",
    "../store-evil/x": "leads out",
    "../hostile-1.0x/x": "leads out",
    "..": "leads out",
    "a/../../escaped": "leads out",
    "a/..": "leads out",
    "/escaped": "leads out",
    "//escaped": "leads out",
    "..\\escaped": "leads out",
    "\\\\host\\share\\escaped": "leads out",
    "a\\b": "leads out",
    "C:escaped": "leads out",
    "C:/escaped": "leads out",
    "a:stream": "leads out",
    "model_handler.py\0.txt": "leads out",
    "": "not written plainly",
    ".": "not written plainly",
    "./": "not written plainly",
    "./model_handler.py": "not written plainly",
    "a//b": "not written plainly",
    "a/./b": "not written plainly",
    "a\nb": "not written plainly",
    "a\x1b[2Jb": "not written plainly",
    "a\x7fb": "not written plainly",
    "a\u202eb": "not written plainly",
    "a" * 256: "too long",
    "é" * 200: "too long",
    "a/" * 600 + "b": "too long",
    "MODEL_HANDLER.PY": "too: refused",
    "mar-inf/manifest.json": "too: refused",
    "model_handler.py/x": "both a file and a folder",
    "model_handler.py/": "both a file and a folder",
    "Model_Handler.py/x": "both a file and a folder",
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:40]))
def test_names_that_lead_elsewhere_or_stand_for_two_things(refused: Callable[..., str], name: str) -> None:
    assert NAMES[name] in refused({named(name): b"x"})


def test_accents_that_are_written_in_two_ways(refused: Callable[..., str]) -> None:
    assert "too: refused" in refused({"caf\u00e9.txt": b"x", "cafe\u0301.txt": b"y"})


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice(refused: Callable[..., str], place: Path) -> None:
    message = refused({}, change=lambda archive: archive.writestr(HANDLER, leaves_mark(place)))
    assert "is in it twice" in message


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_entries_that_are_no_files(refused: Callable[..., str], kind: int) -> None:
    assert "link or a device" in refused({named("escaped", kind): b"/etc/passwd"})


# Sizes.


def test_an_entry_that_grows_too_much(refused: Callable[..., str]) -> None:
    assert "grows over 1000 times" in refused({"zeros": bytes(60_000_000)})


def test_more_files_than_anybody_needs(refused: Callable[..., str]) -> None:
    assert "more than 10000 files" in refused({f"{number}": b"" for number in range(10_000)})


def test_more_bytes_than_there_may_be(refused: Callable[..., str]) -> None:
    def lie(archive: zipfile.ZipFile) -> None:
        for info in archive.infolist()[2:]:
            info.file_size, info.compress_size = 0xFFFFFFF0, 0xFFFFFF0

    assert "or 32 GiB" in refused({f"{number}": b"" for number in range(9)}, change=lie)


def test_a_list_of_entries_that_is_too_long_to_be_read(refused: Callable[..., str]) -> None:
    def swell(archive: zipfile.ZipFile) -> None:
        for info in archive.infolist():
            info.comment = b"x" * 65_535

    message = refused({f"{number}": b"" for number in range(300)}, change=swell)
    assert "a list of entries of over 16 MiB" in message


def test_entries_that_lie_in_one_another(refused: Callable[..., str]) -> None:
    def share(archive: zipfile.ZipFile) -> None:
        first, *others = archive.infolist()[2:]
        for info in others:
            info.header_offset = first.header_offset

    content = os.urandom(100_000)
    assert "lies in another entry" in refused({f"{n}": content for n in range(5)}, change=share)


# The file itself.


def whole(place: Path) -> bytes:
    return written(place, {}).read_bytes()


def changed(place: Path, change: Callable[[zipfile.ZipInfo], None]) -> bytes:
    """An archive whose list of entries says something else of the handler than is true."""
    return written(place, {}, change=lambda archive: change(archive.getinfo(HANDLER))).read_bytes()


def with_wrong_sum(info: zipfile.ZipInfo) -> None:
    info.CRC ^= 1


def as_encrypted(info: zipfile.ZipInfo) -> None:
    info.flag_bits |= 1


def with_other_name(info: zipfile.ZipInfo) -> None:
    info.filename = "other_handler.py"


FILES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda place: b"", "not a .mar file"),
    "no zip": (lambda place: b"\x7fELF" + bytes(1000), "not a .mar file"),
    "a gzipped tar": (lambda place: b"\x1f\x8b" + bytes(1000), "not a .mar file"),
    "nothing but an end": (lambda place: b"PK\5\6" + bytes(18), "no MAR-INF/MANIFEST.json"),
    "cut off": (lambda place: whole(place)[:-30], "not a .mar file"),
    "cut off in front": (lambda place: whole(place)[30:], "not a .mar file"),
    "a script in front": (lambda place: b"#!/bin/sh\n" + whole(place), "something before"),
    "two archives": (lambda place: whole(place) * 2, "something before"),
    "something behind": (lambda place: whole(place) + b"\n", "something behind"),
    "a wrong sum": (lambda place: changed(place, with_wrong_sum), "damaged"),
    "encrypted": (lambda place: changed(place, as_encrypted), "is encrypted"),
    "two names for one entry": (lambda place: changed(place, with_other_name), "differ"),
    "a strange method": (lambda place: packed_by(place, zipfile.ZIP_BZIP2), "a method that nobody needs"),
}


def packed_by(place: Path, method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(MANIFEST, manifest())
        archive.writestr(HANDLER, leaves_mark(place))
    return buffer.getvalue()


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_whole_archive(refused: Callable[..., str], place: Path, case: str) -> None:
    make, reason = FILES[case]
    assert reason in refused(make(place))


# What the manifest says.

MANIFESTS: dict[str, tuple[bytes | None, str]] = {
    "no JSON": (b"{", "cannot be read"),
    "no UTF-8": (b'{"model": "\xff"}', "cannot be read"),
    "no object": (b"[1]", "holds list, expected an object"),
    "no model": (b"{}", "has no 'model'"),
    "a model that is a number": (b'{"model": 3}', "has no 'model'"),
    "deep": (b'{"model": ' + b"[" * 100_000, "cannot be read"),
    "two things": (b'{"model": {"modelName": "a", "modelName": "b"}}', "a name comes twice"),
    "a huge number": (b'{"model": ' + b"9" * 10_000 + b"}", "cannot be read"),
    "33 MiB": (b'{"model": "' + os.urandom(17 << 20).hex().encode() + b'"}', "larger than 32 MiB"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests_that_cannot_be_read(refused: Callable[..., str], case: str) -> None:
    content, reason = MANIFESTS[case]
    assert reason in refused({MANIFEST: content})


def test_no_manifest(refused: Callable[..., str], place: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(HANDLER, leaves_mark(place))
    assert f"no {MANIFEST}" in refused(buffer.getvalue())


MODELS: list[tuple[dict[str, object], str]] = [
    *(
        ({"handler": handler}, "a file's name without a folder is expected")
        for handler in (
            "../x.py",
            "/etc/x.py",
            "a/b.py",
            "x.py:../y",
            "a\nb",
            "..",
            "x.py:",
            "x y",
            "-c;x",
            "é",
        )
    ),
    ({"handler": ""}, "names no handler"),
    ({"handler": 3}, "names no model"),
    *(
        ({key: text}, "letters, digits and")
        for key in ("modelName", "modelVersion")
        for text in (
            "../x",
            "a/b",
            "a\nb",
            "a\0b",
            "x" * 10_000,
            ".hidden",
            " ",
            "a b",
            "é",
            "-x",
            "a%2fb",
            "..",
        )
    ),
    ({"modelName": None}, "names no model"),
    ({"modelVersion": 1.0}, "names no model"),
    *(
        ({key: text}, reason)
        for key in ("configFile", "requirementsFile")
        for text, reason in (
            ("../c.yaml", "leads out"),
            ("/etc/passwd", "leads out"),
            ("a/../../c", "leads out"),
            ("missing.yaml", "is not in the archive"),
            (3, "leads out"),
            ([HANDLER], "leads out"),
        )
    ),
    ({"serializedFile": "../../weights.pt"}, "leads out"),
    ({"modelFile": "/etc/model.py"}, "leads out"),
]


@pytest.mark.parametrize(("model", "reason"), MODELS, ids=lambda value: repr(value)[:50])
def test_manifests_that_name_what_is_not_theirs(
    refused: Callable[..., str], model: dict[str, object], reason: str
) -> None:
    assert reason in refused({MANIFEST: manifest(**model)})


# Configurations.


def bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


CONFIGS = {
    "a billion values": (bomb(), "more than 100000 values"),
    "a billion values where a number belongs": (f"{bomb()}\nminWorkers: *a11", "more than 100000 values"),
    "a list in itself": ("minWorkers: &a [*a]", "more than 100000 values"),
    "code": ("x: !!python/object/apply:os.mknod [MARK]", "cannot be read"),
    "a module": ("x: !!python/module:os", "cannot be read"),
    "a name of Python": ("x: !!python/name:os.system", "cannot be read"),
    "deep": ("x: " + "[" * 5_000, "cannot be read"),
    "deep braces": ("{" * 5_000, "cannot be read"),
    "a list": ("- 1", "holds list, expected an object"),
    "two documents": ("a: 1\n---\nb: 2", "cannot be read"),
    "large": ("x: " + os.urandom(1 << 20).hex(), "larger than 1 MiB"),
    "a date that is none": ("x: 2026-99-99", "cannot be read"),
    "workers that are no number": ("minWorkers: many", "min_workers is 'many'"),
    "fewer workers than none": ("minWorkers: -1", "min_workers is -1"),
    "a batch of none": ("batchSize: 0", "batch_size is 0"),
    "devices that are no numbers": ("deviceIds: [a]", "device_ids is ['a']"),
    "an unknown key of ours": ("torchport_server: {recycle: 3}", "torchport_server.recycle is not known"),
    "ours that is no mapping": ("torchport_server: 3", "names and values are expected"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_traps_or_mistakes(
    refused: Callable[..., str], place: Path, case: str
) -> None:
    text, reason = CONFIGS[case]
    config = text.replace("MARK", repr(str(place / "mark"))).encode()
    message = refused({MANIFEST: manifest(configFile="c.yaml"), "c.yaml": config})
    assert reason in message


# Archives of torchport's, whose hashes no longer hold.


def rewritten(source: Path, target: Path, changes: dict[str, Callable[[bytes], bytes]]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.pop(name, lambda content: content)(old.read(name)))
        for name, change in changes.items():
            new.writestr(name, change(b""))


def one_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def in_certificate(**changes: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | changes).encode()


def in_config(**changes: object) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        config = yaml.safe_load(content)
        config["torchport"] |= changes
        return yaml.safe_dump(config).encode()

    return change


TAMPERED: dict[str, tuple[dict[str, Callable[[bytes], bytes]], str]] = {
    "handler": ({"regressor.py": one_byte}, "regressor.py is not what parity.json was made for"),
    "artifact": ({"main.onnx": one_byte}, "main.onnx is not what parity.json was made for"),
    "signature": ({"signature.json": lambda c: c + b" "}, "signature.json is not what"),
    "runtime": ({"torchport_runtime/handler.py": one_byte}, "torchport_runtime is not what"),
    "a file of the runtime's": (
        {"torchport_runtime/evil.py": lambda c: b"x"},
        "torchport_runtime is not what",
    ),
    "a file more": ({"sitecustomize.py": lambda c: b"x"}, "sitecustomize.py is in the archive, but not in"),
    "a compiled file": (
        {"__pycache__/regressor.cpython-311.pyc": lambda c: b"x"},
        "but not in its certificate",
    ),
    "a certificate that did not pass": ({"parity.json": in_certificate(passed=False)}, "did not pass"),
    "one that says perhaps": ({"parity.json": in_certificate(passed="yes")}, "did not pass"),
    "one of another model": ({"parity.json": in_certificate(recipe="other")}, "is not that of parity.json"),
    "one without hashes": ({"parity.json": in_certificate(binding={})}, "not of torchport's shape"),
    "one with nothing in it": ({"parity.json": lambda c: b"[]"}, "expected an object"),
    "options": ({"model-config.yaml": in_config(tf32=True)}, "options of onnxruntime"),
    "handler options": ({"model-config.yaml": in_config(handler={"x": 1})}, "handler's options"),
    "an unknown backend": ({"model-config.yaml": in_config(backend="magic")}, "backend 'magic'"),
    "an unknown option": ({"model-config.yaml": in_config(magic=1)}, "torchport.magic is not known"),
    "a device of no kind": ({"model-config.yaml": in_config(device="/dev/sda")}, "device '/dev/sda'"),
    "another handler": (
        {MANIFEST: lambda c: c.replace(b'"regressor.py"', b'"torchport_runtime.py"')},
        "manifest's handler",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_archives_of_torchport_s_whose_certificate_does_not_hold(
    server: ServerProcess, place: Path, linear_archive: Path, case: str
) -> None:
    changes, reason = TAMPERED[case]
    path = place / "store" / "tampered-1.0.mar"
    rewritten(linear_archive, path, dict(changes))
    try:
        status, message = refusal(server, url=path.name, model_name="tampered", initial_workers=1)
    finally:
        path.unlink()
    assert (status, reason in message) == (400, True), message


# URLs and parameters.

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


def test_broken_archives_cost_no_other_its_place_when_a_server_starts(
    tmp_path: Path, linear_archive: Path
) -> None:
    """`load_models=all`: what is refused is named with its reason, the rest is served."""
    place = tmp_path
    store = place / "store"
    store.mkdir()
    broken = {
        "cut": whole(place)[:-30],
        "outside": written(place, {named("../escaped"): b"x"}).read_bytes(),
        "bomb": written(
            place, {MANIFEST: manifest(configFile="c.yaml"), "c.yaml": bomb().encode()}
        ).read_bytes(),
        "nameless": written(place, {MANIFEST: manifest(modelName="a/b")}).read_bytes(),
        "none": b"",
    }
    (store / "hostile-1.0.mar").unlink()
    for name, content in broken.items():
        (store / f"{name}-1.0.mar").write_bytes(content)
    (store / "folder-1.0.mar").mkdir()
    (store / "link-1.0.mar").symlink_to("/etc/passwd")
    shutil.copy(linear_archive, store)
    # Whoever starts a server wants all of its models, and is told otherwise; the server itself goes on.
    with pytest.raises(ServerError, match="not every model is served") as caught:
        start(
            Store(store),
            place / "run",
            settings={"default_workers_per_model": "1"},
            arguments=("--ncs", "--no-grpc"),
        )
    for name in (*broken, "folder", "link"):
        assert f"{name}-1.0.mar" in str(caught.value)
    log = (place / "run" / "server.log").read_text()
    assert "worker 9000 of linear 1.0 is ready" in log
    assert "Traceback" not in log
    assert not (place / "mark").exists()
