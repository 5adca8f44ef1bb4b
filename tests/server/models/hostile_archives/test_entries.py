"""Entries whose names lead elsewhere or stand for two things, or that are too many or too large."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.models.hostile_archives.writing import (
    HANDLER,
    leaves_mark,
    named,
)

pytestmark = pytest.mark.server

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
    "a\\..\\..\\escaped": "leads out",
    "\\escaped": "leads out",
    "a\\\\b": "not written plainly",
    "a\\": "not written plainly",
    "model_handler.py\\x": "both a file and a folder",
    "MAR-INF\\MANIFEST.json": "too: refused",
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
