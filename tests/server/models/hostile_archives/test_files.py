"""Files that are no whole archive."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.models.hostile_archives.writing import (
    HANDLER,
    MANIFEST,
    leaves_mark,
    manifest,
    whole,
    written,
)

pytestmark = pytest.mark.server


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
