"""Virtual environments of contenders that want other releases than ours, made once below `.cache/bench`.

environment = Environment.made("litserve", Path(".cache/bench/environments"))
subprocess.run([environment.python, "bench/litserve_app.py"])

What goes in are the releases of `bench/requirements/NAME.txt`, which `make lock` writes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchmarkError

REQUIREMENTS = Path(__file__).parent / "requirements"
FOLDER = Path(".cache") / "bench" / "environments"
STAMP = "requirements.sha256"


class NotInstallable(BenchmarkError):
    """A contender of which this machine cannot have the pinned releases."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    path: Path

    @property
    def python(self) -> str:
        return str(self.path / "bin" / "python")

    @property
    def packages(self) -> Path:
        """Where its packages lie."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.path / "lib" / version / "site-packages"

    def command(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self.path / "bin" / name)

    @classmethod
    def made(cls, name: str, folder: Path = FOLDER) -> Environment:
        """Make it, unless it is there with these releases.

        Raises:
            NotInstallable: pip finds no wheels for this machine; the message is one line.
        """
        environment = cls((folder / name).resolve())
        wanted = REQUIREMENTS / f"{name}.txt"
        stamp = environment.path / STAMP
        content = hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == content:
            return environment
        shutil.rmtree(environment.path, ignore_errors=True)
        pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # The lists are whole, and nothing is compiled.
        pip += ["--no-deps", "--only-binary", ":all:", "--requirement", str(wanted)]
        for command in ([sys.executable, "-m", "venv", str(environment.path)], [environment.python, *pip]):
            # A constraint of this machine is for its own environments: an empty variable would be ignored.
            variables = {**os.environ, "PIP_CONSTRAINT": os.devnull}
            done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
            if done.returncode:
                raise NotInstallable(f"{name} cannot be installed here: {_last_error(done.stderr)}")
        stamp.write_text(content, encoding="utf-8")
        return environment


def _last_error(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no reason given"])[-1].removeprefix("ERROR: ").strip()
