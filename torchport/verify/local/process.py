"""Verifies an archive on this machine, in a child process.

The archive's handler is foreign code, which may end, crash or hang its process. The other archives must
be verified all the same:

    verify_in_child(store.archive("linear", "1.0")).record["passed"]

Only the result file counts, never the exit code. The child leads a process group that ends with it. The
child ends with the process that started it, after a SIGKILL too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from torchport.archive.local_record import record_path
from torchport.child_process import end_with_parent, how_it_ended
from torchport.errors import ArchiveError, TorchportError
from torchport.store.files import read_json, write_json
from torchport.verify.local.proving import LocalParity, verify_archive

TIMEOUT_S = 1800.0
"""Seconds for all backends and devices of one archive; beyond, the child is killed. This is many times
what the largest archive takes, because test vectors are small."""

_LAST_WORDS = 5
"""Maximum number of the child's last lines that explain a failure."""

_LONGEST_LINE = 500
_DRAIN_S = 0.5
"""Seconds to wait for the rest of a pipe: a process that has left the group may hold it open."""


def verify_in_child(
    archive: Path,
    *,
    force: bool = False,
    timeout_s: float = TIMEOUT_S,
    tell: Callable[[str], None] = lambda message: None,
) -> LocalParity:
    """Verify an archive on this machine in a child process, as `verify_archive` does.

    Call it on the main thread: on Linux a child dies with the thread that started it.

    Raises:
        ArchiveError: as `verify_archive`; or the child ended without a result, or took longer than
            `timeout_s` seconds. The archive has no record then.
        OSError: no process can be started, or the temporary folder cannot be written to.
    """
    with tempfile.TemporaryDirectory(prefix="torchport-proving-", ignore_cleanup_errors=True) as name:
        outcome = Path(name) / "outcome.json"
        ended = _run(archive, outcome, force, timeout_s, tell)
        said = read_json(outcome)
    if said is not None and "failure" in said:
        raise ArchiveError(str(said["failure"]))
    if said is not None and {"done", "record"} <= said.keys():
        return LocalParity(bool(said["done"]), said["record"])
    # It may have passed before, or have been through but for its last word.
    record = record_path(archive)
    try:
        record.unlink(missing_ok=True)
    except OSError as err:
        ended += f"; and its record cannot be removed, do it yourself: {err}"
    raise ArchiveError(f"{archive.name} was not proven: {ended}")


def _run(archive: Path, outcome: Path, force: bool, timeout_s: float, tell: Callable[[str], None]) -> str:
    """Run the child to its end. Returns how it ended."""
    command = [sys.executable, "-P", "-u", "-m", "torchport.verify.local.process", str(archive.absolute())]
    last: deque[str] = deque(maxlen=_LAST_WORDS)
    process = subprocess.Popen(
        [*command, str(outcome), *(["--force"] if force else [])],
        # What it unpacks goes with the folder, should it not come to remove it.
        env=os.environ | {"TMPDIR": str(outcome.parent)},
        stdin=subprocess.PIPE,  # Its lifeline: it ends where this end of it is closed.
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    lifeline, progress, rest = cast(tuple[IO[bytes], ...], (process.stdin, process.stdout, process.stderr))
    readers = [
        threading.Thread(target=_each_line, args=(stream, take), daemon=True)
        for stream, take in ((progress, tell), (rest, last.append))
    ]
    try:
        for reader in readers:
            reader.start()
        process.wait(timeout_s)
        ended = f"its process {how_it_ended(process.returncode)} before it was through"
    except subprocess.TimeoutExpired:
        ended = f"it did not come to an end within {timeout_s:g} s (--timeout allows it more)"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        lifeline.close()
        for reader in readers:
            reader.join(_DRAIN_S)
    words = " / ".join(filter(None, map(str.strip, last)))
    return ended + (f"; its last words were: {words}" if words else "")


def _each_line(stream: IO[bytes], take: Callable[[str], object]) -> None:
    """Pass on every line of a stream, long lines in pieces; runs in a thread."""
    with stream:
        while raw := stream.readline(_LONGEST_LINE):
            take(raw.decode("utf-8", "replace").rstrip())


def main() -> None:
    """Verify in the child, and write the result file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("outcome", type=Path)
    parser.add_argument("--force", action="store_true")
    given = parser.parse_args()
    # Its own from here on: an archive's handler finds nothing to read.
    lifeline = os.dup(0)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    end_with_parent(lifeline)
    # What a handler prints is no progress: standard output is told of that alone.
    progress = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        result = verify_archive(
            given.archive, force=given.force, tell=lambda message: print(message, file=progress, flush=True)
        )
        write_json(given.outcome, {"done": result.done, "record": result.record})
    except TorchportError as err:
        write_json(given.outcome, {"failure": str(err)})
    except OSError as err:
        write_json(given.outcome, {"failure": f"{given.archive.name} was not proven: {err}"})
    # Not by the long way through the clean-up of torch, or of the handler: everything is said.
    os._exit(0)


if __name__ == "__main__":
    main()
