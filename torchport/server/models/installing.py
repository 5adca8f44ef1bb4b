"""Installs an archive's requirements by pip, into the model's folder.

    install_requirements("linear", folder, "requirements.txt", settings)

pip runs in that folder and finds wheels that the archive carries. Nothing of the archive is replaced: a
file that was checked stays what it was. pip ends with the server, and what it installed is logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torchport.server.errors import ArchiveRefused
from torchport.server.models.requirements import contained_requirements
from torchport.server.settings.settings import ServerSettings

logger = logging.getLogger(__name__)

INSTALL_TIMEOUT_S = 600
"""Seconds that pip may take for one archive; then it is killed, and the archive refused."""

_LAST_WORDS = 600
"""Maximum characters of pip's output that explain a failure."""


def install_requirements(model: str, folder: Path, name: str, settings: ServerSettings) -> None:
    """Install the requirements file `name` of a model's folder into this folder.

    Raises:
        ArchiveRefused: a line reaches outside of the archive, and `install_py_dep_from_anywhere` is not set;
            or pip fails, or takes too long.
        OSError: pip cannot be started, or the disk cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="pip-", dir=folder.parent, ignore_cleanup_errors=True) as own:
        scratch = Path(own)
        report = scratch / "report.json"
        arguments = ["install", "--quiet", "--target", str(folder), "--report", str(report)]
        if settings.install_py_dep_from_anywhere:
            arguments += ["-r", str(folder / name)]
        else:
            arguments += _written(scratch, folder, name)
        code, said = _run(arguments, folder, scratch, settings)
        if code is None:
            raise ArchiveRefused(f"{model}: pip took longer than {INSTALL_TIMEOUT_S} s")
        if code:
            raise ArchiveRefused(
                f"Custom pip package installation failed for model {model}: {said[-_LAST_WORDS:]}"
            )
        installed = ", ".join(_installed(report, folder)) or "nothing"
        logger.info("model %s: pip installed by %s, into the model's folder: %s", model, name, installed)
        if said:
            logger.warning("model %s: pip said: %s", model, said[-_LAST_WORDS:])


def _written(scratch: Path, folder: Path, name: str) -> list[str]:
    """pip's arguments for the requirements, once they are written down anew in `scratch`."""
    found = contained_requirements(folder, name)
    arguments = list(found.options)
    for option, lines in (("-r", found.lines), ("-c", found.constraints)):
        path = scratch / f"{option[1]}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if lines or option == "-r":
            arguments += [option, str(path)]
    return arguments


def _run(
    arguments: list[str], folder: Path, scratch: Path, settings: ServerSettings
) -> tuple[int | None, str]:
    """Run pip. Returns its exit code, None if it was killed for its time, and what it printed."""
    theirs, ours = os.pipe()
    output = scratch / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "torchport.server.models.pip_process"),
                *(str(theirs), str(folder), *arguments),
            ],
            env=_environment(scratch, settings),
            pass_fds=(theirs,),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    os.close(theirs)
    try:
        code: int | None = process.wait(INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - (1 << 16)))
        return code, file.read().decode("utf-8", "replace").strip()


def _environment(scratch: Path, settings: ServerSettings) -> dict[str, str]:
    """The server's environment, without what workers do not get either."""
    hidden = re.compile(settings.blacklist_env_vars)
    found = {name: text for name, text in os.environ.items() if not hidden.fullmatch(name)}
    own = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUTF8": "1"}
    # What a killed pip leaves there goes with the folder.
    return found | own | {"TMPDIR": str(scratch)}


def _installed(report: Path, folder: Path) -> list[str]:
    """Names and versions of what was installed."""
    try:
        entries: list[Any] = json.loads(report.read_text(encoding="utf-8"))["install"]
        return [_named(entry, folder) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as err:
        logger.warning("what pip installed is not known: its report cannot be read (%r)", err)
        return []


def _named(entry: Any, folder: Path) -> str:
    name = f"{entry['metadata']['name']} {entry['metadata']['version']}"
    url = str(entry["download_info"]["url"])
    return f"{name} (of the archive)" if url.startswith(folder.resolve().as_uri()) else name
