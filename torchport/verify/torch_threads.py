"""Restores torch's number of threads, which opening a backend changes for the process.

with torch_threads_kept():
    open_backend(path, signature, options)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_threads_kept(count: int | None = None) -> Iterator[None]:
    """Restore torch's number of threads on leaving.

    Inside, the number is `count`, if given.
    """
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
