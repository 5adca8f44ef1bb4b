"""Bytes of shared memory that say when nobody refers to them any more.

    body = leased(memory, start, size, lease)       # a memoryview
    lease_of(body[5:10]) is lease                   # of every view and slice of it
    address_of(body)

A module of its own, because a server's first answer does not wait for numpy.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


class _Leased(np.ndarray):
    """The bytes; each view of them, and each slice of a view, refers to this."""

    lease: object


def leased(memory: mmap.mmap, start: int, size: int, lease: object) -> memoryview:
    """So many bytes of the memory, which keep `lease` for as long as anything refers to them."""
    array = np.frombuffer(memory, np.uint8, size, start).view(_Leased)
    array.lease = lease
    return array.data


def lease_of(data: memoryview) -> object:
    """The lease of bytes that `leased` has given; None for others."""
    return getattr(data.obj, "lease", None)


def address_of(data: Any) -> int:
    """The address of a buffer's first byte."""
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])
