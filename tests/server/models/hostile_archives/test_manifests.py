"""Manifests that cannot be read, or name what is not theirs."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.models.hostile_archives.writing import (
    HANDLER,
    MANIFEST,
    leaves_mark,
    manifest,
)

pytestmark = pytest.mark.server

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


def test_a_runtime_that_is_not_python(refused: Callable[..., str]) -> None:
    content = json.loads(manifest()) | {"runtime": "LSP"}
    assert "runtime is 'LSP'" in refused({MANIFEST: json.dumps(content).encode()})


def test_no_manifest(refused: Callable[..., str], place: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(HANDLER, leaves_mark(place))
    assert f"no {MANIFEST}" in refused(buffer.getvalue())


MODELS: list[tuple[dict[str, object], str]] = [
    *(
        ({"handler": handler}, "the name of a file of the archive is expected")
        for handler in (
            "../x.py",
            "/etc/x.py",
            "a/../b.py",
            "a//b.py",
            "x.py:../y",
            "a\nb",
            "..",
            "x.py:",
            "x y",
            "-c;x",
            "é",
        )
    ),
    ({"handler": "a/b.py"}, "neither b.py nor a/b.py is in the archive"),
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
    ({"modelVersion": True}, "names no model"),
    ({"modelVersion": -1}, "letters, digits and"),
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
