"""Turns errors of a command into one message on stderr and its exit code.

with reported_errors():
    app()
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from torchport.errors import TorchportError


@contextmanager
def reported_errors() -> Iterator[None]:
    """End the process if what runs inside raises an error of ours, of the disk, or Ctrl-C."""
    try:
        yield
    except TorchportError as err:
        _end(str(err), err.exit_code)
    except OSError as err:
        # A disk that is full or a folder that cannot be written, where no stage had a better word for it.
        _end(f"{err.strerror or err}: {err.filename or ''}; stages write whole files or none", 2)
    except KeyboardInterrupt:
        _end("interrupted; what was finished is kept, and training goes on from its checkpoint", 130)


def _end(message: str, code: int) -> None:
    # Only now: a server would start later by what the console imports.
    from torchport.cli import console

    console.problem(message)
    sys.exit(code)
