"""Zip archives whose bytes depend on their entries alone.

reproducible_zip([("a.txt", b"1"), ("b.txt", b"2")])     # the same bytes on any day and machine
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest date that a zip entry can have."""

_LOCAL_HEADER, _EXTRA_HEADER = 30, 4
"""Bytes of a zip entry's header before its name, and of an extra field before its content."""


def reproducible_zip(
    entries: Iterable[tuple[str, bytes]], *, permissions: int = 0o600, alignment: int = 1
) -> bytes:
    """An uncompressed zip of the entries in the given order, with fixed dates.

    With an `alignment` of more than 1, each entry's content begins at a multiple of so many bytes: an extra
    field `FB` fills the gap, as PyTorch writes it.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            entry = zipfile.ZipInfo(name, date_time=EPOCH)
            entry.external_attr = permissions << 16
            if alignment > 1:
                begin = buffer.tell() + _LOCAL_HEADER + len(name.encode()) + _EXTRA_HEADER
                padding = -begin % alignment
                entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(entry, content)
    return buffer.getvalue()
