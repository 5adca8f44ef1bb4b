"""Checks the end of a zip file, where its list of entries is said to be.

    require_plain_end(Path("linear-1.0.mar"))

A zip file can have two ends, a plain one and that of large files (zip64). Programs differ in which of them
they believe, so that two programs could see two archives in one file.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

from torchport.errors import ArchiveError

MAX_DIRECTORY = 16 << 20
"""Maximum bytes of the list of entries. It is in memory before the entries can be counted."""

_END = struct.Struct("<4s4H2LH")
"""The plain end: signature, two disks, two counts, size and place of the list, size of a comment."""

_LOCATOR = struct.Struct("<4sLQL")
"""Before it, for large files: signature, disk and place of the large end, number of disks."""

_LARGE_END = struct.Struct("<4sQ2H2L4Q")
"""The large end: signature, size, two versions, two disks, two counts, size and place of the list."""

_ANY_16, _ANY_32 = 0xFFFF, 0xFFFFFFFF
"""Values of the plain end that refer to the large one."""


def require_plain_end(path: Path) -> None:
    """Refuse a file whose end is not where it says, or whose two ends differ.

    Raises:
        ArchiveError: it is no regular file, there is something behind the archive, the list of entries is
            too long, or the ends differ.
        zipfile.BadZipFile: it has no end.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ArchiveError(f"{path} is no regular file, but a folder, a pipe or a device: refused")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = file.seek(max(0, size - _END.size - 0xFFFF - _LOCATOR.size - _LARGE_END.size))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise zipfile.BadZipFile("File is not a zip file")
    _, *plain, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise ArchiveError(f"{path}: there is something behind the archive: refused")
    large = _large_end(path, tail, at, start)
    if large is not None:
        _require_same(path, plain, large)
    directory = plain[4] if large is None else large[4]
    if directory > MAX_DIRECTORY:
        raise ArchiveError(f"{path}: a list of entries of over {MAX_DIRECTORY >> 20} MiB: refused")


def _large_end(path: Path, tail: bytes, at: int, start: int) -> list[int] | None:
    """Disks, counts, size and place of the list, as the large end has them; None if there is no such end.

    `at` is the plain end's place in `tail`, which begins at byte `start` of the file.
    """
    if at < _LOCATOR.size:
        return None
    signature, disk, place, disks = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
    if signature != b"PK\6\7":
        return None
    before = at - _LOCATOR.size - _LARGE_END.size
    if before < 0 or place != start + before or disk or disks > 1:
        raise ArchiveError(f"{path}: its end for large files is not where it says: refused")
    signature, size, _, _, *fields = _LARGE_END.unpack_from(tail, before)
    if signature != b"PK\6\6" or size != _LARGE_END.size - 12:
        raise ArchiveError(f"{path}: its end for large files is not where it says: refused")
    return fields


def _require_same(path: Path, plain: list[int], large: list[int]) -> None:
    for index, (first, second) in enumerate(zip(plain, large, strict=True)):
        refers = _ANY_32 if index >= 4 else _ANY_16
        if first not in (second, refers):
            raise ArchiveError(f"{path}: its two ends, plain and for large files, differ: refused")
