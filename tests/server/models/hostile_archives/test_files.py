"""Files that are no whole archive."""

from __future__ import annotations

import io
import struct
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
from torchport.archive.contents import inspect_archive

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


def with_two_ends(folder: Path, **other: int) -> bytes:
    """An archive with an end for large files, too, and what its plain end says otherwise."""
    content = whole(folder)
    at = content.rindex(b"PK\5\6")
    fields = dict(
        zip(("entries", "size", "place"), struct.unpack_from("<HLL", content, at + 10), strict=True)
    )
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, fields["entries"], *fields.values())
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, other.pop("where", at), 1)
    plain = fields | other
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, plain["entries"], *plain.values(), 0)
    return content[:at] + large + locator + end


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
    "two ends, of other counts": (lambda place: with_two_ends(place, entries=1), "two ends"),
    "two ends, of other sizes": (lambda place: with_two_ends(place, size=46), "two ends"),
    "two ends, of other places": (lambda place: with_two_ends(place, place=0), "two ends"),
    "an end that is elsewhere": (lambda place: with_two_ends(place, where=0), "not where it says"),
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


@pytest.mark.parametrize("refers", [{}, {"entries": 0xFFFF, "size": 0xFFFFFFFF, "place": 0xFFFFFFFF}])
def test_two_ends_that_say_the_same_are_one(place: Path, tmp_path: Path, refers: dict[str, int]) -> None:
    path = tmp_path / "large.mar"
    path.write_bytes(with_two_ends(place, **refers))
    (place / "store" / "hostile-1.0.mar").unlink()
    assert inspect_archive(path).name == "hostile"
