"""Installs this project with exactly the releases of a list, into the environment of the Python that runs it.

    .venv/bin/python requirements/install.py requirements/locked.txt --otherwise ".[train,test]"

`make lock` writes the lists. A constraint of this machine (PIP_CONSTRAINT, `constraint` in pip's
configuration) may exclude a release of the list. Then one line names it, and pip installs what the ranges
in pyproject.toml allow. Any other failure is pip's own and ends this program with pip's exit code.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
MACHINES = ("x86_64", "aarch64")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""The Pythons for which `make lock` finds all wheels of locked.txt; the suite has passed on the first."""
BUILD_TOOLS = ("setuptools", "wheel")
"""What builds the project, and enum-compat, of which there is no wheel."""

_ENTRY = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>\S+)(?: ; (?P<marker>.+))?")
_CONFLICT = re.compile(r"The user requested (?P<name>[\w.-]+) (?P<version>\S+) \(from ")
_CONSTRAINT = re.compile(r"The user requested \(constraint\) (?P<constraint>.+)")


@dataclass(frozen=True, kw_only=True)
class Release:
    """One entry of a list: a release, the environments that need it, and its hashes."""

    name: str
    version: str
    marker: str | None
    """The environments that need the release, as in PEP 508; None if all do."""
    text: str
    """The entry as it stands in the list, hashes included."""


def read_list(text: str) -> list[Release]:
    """The releases of a list in pip's requirements format.

    Raises:
        ValueError: an entry that pins no release.
    """
    releases = []
    for entry in re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n?", "", text)):
        requirement = entry.partition("\n")[0].rstrip("\\ ")
        if not requirement:
            continue
        pinned = _ENTRY.fullmatch(requirement)
        if pinned is None:
            raise ValueError(f"{requirement!r} pins no release: expected name==version")
        releases.append(Release(**pinned.groupdict(), text=entry))
    return releases


def foreign(system: str, machine: str, python: str) -> str | None:
    """Why the lists do not hold in such an environment; None where they do."""
    if system == "Linux" and machine in MACHINES and python in PYTHONS:
        return None
    return (
        f"it holds on Linux, {' and '.join(MACHINES)}, Python {PYTHONS[0]} to {PYTHONS[-1]}, "
        f"and this is {system}, {machine}, Python {python}"
    )


def held(releases: list[Release]) -> str | None:
    """The releases that pip's constraints on this machine exclude, with the constraints; None if none is.

    pip itself is asked, so constraints count wherever it finds them. It is offered wheels that hold a name
    and a version only, so nothing is downloaded.

    Raises:
        SystemExit: pip failed for another reason, such as a constraints file that does not exist.
    """
    excluded: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        offered = {release: write_empty_wheel(release, Path(folder)) for release in releases}
        asked = Path(folder) / "requirements.txt"
        command = [*PIP, "--dry-run", "--no-deps", "--no-index", "--ignore-installed"]
        command += ["--requirement", str(asked)]
        while True:
            lines = [
                f"{release.name} @ {wheel.as_uri()}" + (f" ; {release.marker}" if release.marker else "")
                for release, wheel in offered.items()
            ]
            asked.write_text("\n".join(lines), encoding="utf-8")
            answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if answer.returncode == 0:
                return ", ".join(excluded) or None
            said = answer.stdout + answer.stderr
            conflict, constraints = _CONFLICT.search(said), _CONSTRAINT.findall(said)
            if conflict is None or not constraints:
                print(said, file=sys.stderr, end="")
                raise SystemExit(answer.returncode)
            name, version = conflict.groups()
            excluded.append(f"{name} {version} is excluded by the constraint {' and '.join(constraints)}")
            offered = {r: wheel for r, wheel in offered.items() if (r.name, r.version) != (name, version)}


def write_empty_wheel(release: Release, folder: Path) -> Path:
    """Write a wheel of this name and version that installs nothing; return its path."""
    stem = f"{re.sub(r'[-_.]+', '_', release.name)}-{release.version}"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {release.name}\nVersion: {release.version}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(f"{stem}.dist-info/{name}", content)
    return path


def install(path: Path, releases: list[Release]) -> None:
    """Install the list, then this project without its dependencies. Nothing is built with other releases."""
    exact = [*PIP, "--quiet", "--no-deps", "--no-build-isolation", "--require-hashes"]
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "build_tools.txt"
        first.write_text("\n".join(r.text for r in releases if r.name in BUILD_TOOLS), encoding="utf-8")
        run([*exact, "--requirement", str(first)])
    run([*exact, "--requirement", str(path)])
    run([*PIP, "--quiet", "--no-deps", "--no-build-isolation", "--editable", "."])


def run(command: list[str]) -> None:
    """Run it in the project's folder.

    Raises:
        SystemExit: it failed; with its exit code.
    """
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("list", type=Path, help="requirements/locked.txt or requirements/oldest.txt")
    parser.add_argument(
        "--otherwise",
        metavar="REQUIREMENT",
        help="this project with its extras; pip resolves their ranges where the list cannot be installed",
    )
    arguments = parser.parse_args()
    path: Path = arguments.list.resolve()
    releases = read_list(path.read_text(encoding="utf-8"))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    reason = foreign(platform.system(), platform.machine(), python) or held(releases)
    if reason is None:
        install(path, releases)
    elif arguments.otherwise:
        print(f"{arguments.list} is passed over: {reason}; installing what pyproject.toml allows", flush=True)
        run([*PIP, "--quiet", "--editable", arguments.otherwise])
    else:
        raise SystemExit(f"{arguments.list} cannot be installed: {reason}")


if __name__ == "__main__":
    main()
