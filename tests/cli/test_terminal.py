"""A terminal obeys control characters: none of an archive's reaches it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.server.archives import write_archive
from torchport.archive.contents import inspect_archive
from torchport.cli import app, console
from torchport.errors import ArchiveError

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\x08\x9b31m\x7f\u202e\u2028\nevery hash holds"


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    got = capsys.readouterr()
    return got.out + got.err


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both consoles write to what the test reads."""
    for name in ("out", "err"):
        monkeypatch.setattr(console, name, console.Console(soft_wrap=True, highlight=False, width=400))


def is_harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


@pytest.mark.usefixtures("shown")
def test_an_archive_s_words_are_no_commands_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = {"modelName": HOSTILE, "modelVersion": HOSTILE, "handler": HOSTILE}
    path = write_archive(tmp_path, "own", "", manifest=manifest, config={"torchport": {HOSTILE: HOSTILE}})
    with pytest.raises(app.typer.Exit):
        app.inspect(path)
    text = printed(capsys)
    assert "\\x1b[2J" in text
    assert is_harmless(text)
    assert "every hash holds" not in text.splitlines()


@pytest.mark.usefixtures("shown")
def test_neither_are_messages_of_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.mar"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"configFile": "c.yaml"}}))
        file.writestr("c.yaml", "a: *\u009b31m\x85")
    with pytest.raises(ArchiveError) as caught:
        inspect_archive(path)
    console.problem(str(caught.value))
    console.problem(HOSTILE)
    assert is_harmless(printed(capsys))


def test_plain_text_stays_as_it_is() -> None:
    for text in ("model é 1.0", "日本語", "[bold]", "a\\nb"):
        assert console.plain(text) == text
    assert console.plain("a\tb\nc", keep="\n") == "a\\tb\nc"


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize(
    "files",
    [
        {"signature.json": b'{"graphs": [1]}'},
        {"signature.json": b'{"graphs": {"main": {"inputs": {"x": 3}, "outputs": {}}}}'},
        {
            "signature.json": b'{"name": "of another tool"}',
            "c.yaml": yaml.safe_dump({"torchport": 3}).encode(),
        },
    ],
    ids=["a list", "numbers", "of another tool"],
)
def test_records_of_another_shape_are_no_traceback(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = write_archive(
        tmp_path, "own", "", manifest={"configFile": "c.yaml"}, files={"c.yaml": b"", **files}
    )
    with pytest.raises((ArchiveError, app.typer.Exit)):
        app.inspect(path)
