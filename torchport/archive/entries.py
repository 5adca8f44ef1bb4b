"""Reads the zip of a `.mar` file, checking names and sizes first.

with open_archive(Path("model_store/linear-1.0.mar")) as archive:
    for info in archive.infolist():
        for chunk in read_entry(path, archive, info): ...
"""

from __future__ import annotations

import lzma
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from torchport.errors import ArchiveError

MAX_FILES = 10_000
MAX_BYTES = 32 * 2**30
MAX_RATIO = 1000
"""Maximum files and bytes of an archive, and maximum growth of an entry. An archive beyond one of them is
refused."""

MAX_DIRECTORY = 16 << 20
"""Maximum bytes of the list of entries. It is in memory before the entries can be counted."""

MAX_NAME, MAX_PART = 1024, 255
"""Maximum bytes of an entry's name, and of each part of it. An archive beyond is refused."""

_CHUNK = 1 << 20
_ENCRYPTED = 1
_LOCAL_HEADER = 30
_END = struct.Struct("<4s4H2LH")
"""The end of a zip file: signature, disks and counts, size and place of the directory, size of a comment."""

_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    # NotImplementedError, of an unknown method, is one too; so is a missing password.
    RuntimeError,
)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a `.mar` file after checking every name and size in it.

    Raises:
        ArchiveError: no such file, no regular one, not a zip, truncated, too large, a name that leads out or
            comes twice, a link, an encrypted entry, entries that overlap, other data before or behind.
    """
    try:
        _refuse_strange_end(path)
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as err:
        raise ArchiveError(f"no archive {path}") from err
    except _UNREADABLE as err:
        raise ArchiveError(f"{path}: not a .mar file, or truncated ({err})") from err
    with archive:
        _refuse_hostile(path, archive)
        yield archive


def read_entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Read one entry's bytes, in pieces.

    Raises:
        ArchiveError: the entry is damaged or encrypted.
    """
    try:
        with archive.open(info) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except _UNREADABLE as err:
        raise ArchiveError(f"{path}: {info.filename} is damaged or encrypted ({err})") from err


def extract(path: Path, folder: Path, *, only: set[str] | None = None) -> None:
    """Unpack an archive below `folder`; with `only`, these names alone.

    Raises:
        ArchiveError: as `open_archive`.
        OSError: `folder` cannot be written, or the disk is full.
    """
    with open_archive(path) as archive:
        for info in archive.infolist():
            if info.is_dir() or (only is not None and info.filename not in only):
                continue
            target = folder / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                for chunk in read_entry(path, archive, info):
                    out.write(chunk)


def _refuse_strange_end(path: Path) -> None:
    """Refuse a file whose end is not where it says.

    Two programs could see two archives in it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ArchiveError(f"{path} is no regular file, but a folder, a pipe or a device: refused")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _END.size - 0xFFFF))
        tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise zipfile.BadZipFile("File is not a zip file")
    *_, directory, _, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise ArchiveError(f"{path}: there is something behind the archive: refused")
    if directory > MAX_DIRECTORY:
        raise ArchiveError(f"{path}: a list of entries of over {MAX_DIRECTORY >> 20} MiB: refused")


def _refuse_hostile(path: Path, archive: zipfile.ZipFile) -> None:
    infos = archive.infolist()
    if len(infos) > MAX_FILES or sum(info.file_size for info in infos) > MAX_BYTES:
        raise ArchiveError(f"{path}: more than {MAX_FILES} files or {MAX_BYTES >> 30} GiB: refused")
    for info in infos:
        reason = _reason_against(info)
        if reason:
            raise ArchiveError(f"{path}: {reason}: refused")
    _refuse_collisions(path, infos)
    _refuse_overlaps(path, infos)


def _reason_against(info: zipfile.ZipInfo) -> str:
    """Why an entry is refused before it is read; empty if it is not."""
    # `filename` ends before a NUL, which the archive's own list does not.
    full = info.orig_filename
    name, shown = PurePosixPath(full), repr(full[:200])
    if name.is_absolute() or ".." in name.parts or "\\" in full or ":" in full or "\0" in full:
        return f"the name {shown} leads out of the archive"
    if not name.parts or not full.isprintable() or str(name) != full.removesuffix("/"):
        return f"the name {shown} is not written plainly"
    if len(full.encode()) > MAX_NAME or max(len(part.encode()) for part in name.parts) > MAX_PART:
        return f"the name {shown} is too long"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return f"{shown} is a link or a device"
    if info.flag_bits & _ENCRYPTED:
        return f"{shown} is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"{shown} is packed by a method that nobody needs"
    if info.file_size > MAX_RATIO * max(info.compress_size, 1024):
        return f"{shown} grows over {MAX_RATIO} times"
    return ""


def _refuse_collisions(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that would overwrite each other on some file system."""
    files: dict[str, str] = {}
    for info in infos:
        if info.is_dir():
            continue
        key = _folded(info.filename)
        if key in files:
            how = "twice" if files[key] == info.filename else f"as {files[key]!r} too"
            raise ArchiveError(f"{path}: {info.filename!r} is in it {how}: refused")
        files[key] = info.filename
    for info in infos:
        parents = PurePosixPath(_folded(info.filename)).parents
        folders = [*map(str, parents), *([_folded(info.filename).rstrip("/")] if info.is_dir() else [])]
        for folder in folders:
            if folder in files:
                raise ArchiveError(f"{path}: {files[folder]!r} is both a file and a folder in it: refused")


def _folded(name: str) -> str:
    """The name as file systems without cases or accent forms see it."""
    return unicodedata.normalize("NFC", name).casefold()


def _refuse_overlaps(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that share bytes, by which small files make large folders."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < 0:
            raise ArchiveError(f"{path}: not a .mar file, or truncated (its front is missing)")
        if info.header_offset < end:
            raise ArchiveError(f"{path}: {info.filename!r} lies in another entry: refused")
        if end == 0 and info.header_offset > 0:
            raise ArchiveError(f"{path}: there is something before the archive: refused")
        end = info.header_offset + _LOCAL_HEADER + len(info.filename) + info.compress_size
