"""A server's run folder, locked, and in it the folder into which archives are unpacked.

    work = WorkFolder(Path(".run/serve-8080"))
    work.path                            # .run/serve-8080/unpacked, empty
    work.remove()

It is not in the system's temporary folder, because that is cleaned while a server runs.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from torchport.errors import ServerError
from torchport.store.files import read_json

logger = logging.getLogger(__name__)


class WorkFolder:
    """A server's own folder, locked until it is removed or the process ends.

    Without a run folder it is a temporary one.

    Raises:
        ServerError: another server uses the run folder, or the folder cannot be written.
    """

    def __init__(self, run_folder: Path | None = None) -> None:
        run = Path(tempfile.mkdtemp(prefix="torchport-serve-")) if run_folder is None else run_folder
        self._lock = FileLock(run / "server.lock")
        self._temporary = run if run_folder is None else None
        self.path = run.absolute() / "unpacked"
        try:
            run.mkdir(parents=True, exist_ok=True)
            self._acquire(run)
            # What is there was left by a server that was killed.
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(exist_ok=True)
        except OSError as err:
            raise ServerError(
                f"the run folder {run} cannot be written ({err.strerror or err}): choose another with --run"
            ) from err

    def _acquire(self, run: Path) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as err:
            record = read_json(run / "server.json", "pid", "inference")
            who = f" (process {record['pid']}, {record['inference']})" if record else ""
            raise ServerError(
                f"another server{who} uses the run folder {run}: stop it, or choose another folder with --run"
            ) from err
        except NotImplementedError:
            logger.warning("the file system of %s knows no locks: let no other server use it", run)

    def remove(self) -> None:
        """Remove what was unpacked, then let another server have the run folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
