"""Reads the zip of a `.mar` file, checking names and sizes first.

with open_archive(Path("model_store/linear-1.0.mar")) as archive:
    for info in archive.infolist():
        for chunk in read_entry(path, archive, info): ...
"""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from torchport.archive.zip_end import require_plain_end
from torchport.errors import ArchiveError

MAX_FILES = 10_000
MAX_BYTES = 32 * 2**30
MAX_RATIO = 1000
"""Maximum files and bytes of an archive, and maximum growth of an entry. An archive beyond one of them is
refused."""

MAX_GROWTH, MAY_GROW = 100, 256 << 20
"""Maximum growth of all entries together, where they come to more than `MAY_GROW` bytes. Weights in
floating point grow less than twice; those of a pruned model, mostly zeros, some twenty times."""

RESERVE = 64 << 20
"""Bytes of a disk that unpacking an archive leaves free."""

MAX_NAME, MAX_PART = 1024, 255
"""Maximum bytes of an entry's name, and of each part of it. An archive beyond is refused."""

_CHUNK = 1 << 20
_BLOCK = 4096
_ENCRYPTED = 1
_LOCAL_HEADER = 30
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
        require_plain_end(path)
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
        OSError: `folder` cannot be written, or the disk has too little space for the archive; nothing is
            written then.
    """
    with open_archive(path) as archive:
        wanted = [
            info
            for info in archive.infolist()
            if not info.is_dir() and (only is None or info.filename in only)
        ]
        _require_space(folder, wanted)
        for info in wanted:
            target = folder / info.filename
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                for chunk in read_entry(path, archive, info):
                    out.write(chunk)


def _require_space(folder: Path, infos: list[zipfile.ZipInfo]) -> None:
    # A file takes whole blocks of the disk.
    needed = sum(-(-info.file_size // _BLOCK) * _BLOCK for info in infos)
    free = shutil.disk_usage(folder).free
    if needed + RESERVE > free:
        said = (
            f"it takes {needed:,} bytes unpacked, and {free:,} are free, of which {RESERVE:,} must stay: "
            "make room, or choose another disk"
        )
        raise OSError(errno.ENOSPC, said)


def _refuse_hostile(path: Path, archive: zipfile.ZipFile) -> None:
    infos = archive.infolist()
    total = sum(info.file_size for info in infos)
    if len(infos) > MAX_FILES or total > MAX_BYTES:
        raise ArchiveError(f"{path}: more than {MAX_FILES} files or {MAX_BYTES >> 30} GiB: refused")
    if total > max(MAY_GROW, MAX_GROWTH * path.stat().st_size):
        raise ArchiveError(f"{path}: it grows over {MAX_GROWTH} times, to {total >> 20} MiB: refused")
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
    # A backslash belongs to the name here and on TorchServe, and parts names elsewhere: neither may lead out.
    parted = PurePosixPath(full.replace("\\", "/"))
    if parted.is_absolute() or ".." in parted.parts or ":" in full or "\0" in full:
        return f"the name {shown} leads out of the archive"
    if "\\" in full and os.sep == "\\":
        return f"the name {shown} has a backslash, which parts names on this system"
    plain = str(parted) == full.removesuffix("/").replace("\\", "/")
    if not name.parts or not full.isprintable() or not plain:
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
    """The name as file systems see it that have no cases or accent forms, or part names by backslashes."""
    return unicodedata.normalize("NFC", name).casefold().replace("\\", "/")


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
