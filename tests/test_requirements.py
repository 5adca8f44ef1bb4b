"""The lists in requirements/: what they pin, and that requirements/install.py installs nothing else."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from requirements.install import MACHINES, PYTHONS, Release, foreign, held, read_list, write_empty_wheel
from tests.conftest import ROOT

LISTS = {
    name: read_list((ROOT / "requirements" / name).read_text("utf-8"))
    for name in ("locked.txt", "oldest.txt")
}


def direct(variable: str) -> list[Requirement]:
    """The requirements of the project and of the extras that this variable of the Makefile names."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    values = dict(re.findall(r"^(\w*EXTRAS) := (.+)$", makefile, re.MULTILINE))
    extras = values[variable].replace("$(TEST_EXTRAS)", values["TEST_EXTRAS"]).split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in lists for line in lines]


def environment(machine: str, python: str) -> dict[str, str]:
    """What markers ask of CPython on Linux."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def pinned(releases: list[Release], where: dict[str, str]) -> dict[str, Version]:
    """The one version of each name that the list pins in this environment."""
    versions: dict[str, Version] = {}
    for release in releases:
        if release.marker is None or Marker(release.marker).evaluate(where):
            name = canonicalize_name(release.name)
            assert name not in versions, f"{name} is pinned twice"
            versions[name] = Version(release.version)
    return versions


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_lock_has_every_dependency_within_its_range(machine, python):
    where = environment(machine, python)
    versions = pinned(LISTS["locked.txt"], where)
    wanted = [r for r in direct("EXTRAS") if r.marker is None or r.marker.evaluate(where)]
    assert len(wanted) > 30
    missing = [str(r) for r in wanted if versions.get(canonicalize_name(r.name)) not in r.specifier]
    assert not missing


@pytest.mark.parametrize("machine", MACHINES)
def test_the_oldest_releases_are_the_lower_bounds(machine):
    where = environment(machine, PYTHONS[0])
    versions = pinned(LISTS["oldest.txt"], where)
    for requirement in direct("TEST_EXTRAS"):
        if requirement.marker is None or requirement.marker.evaluate(where):
            (bound,) = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
            assert versions[canonicalize_name(requirement.name)] == bound, requirement


def test_the_lock_has_what_is_held():
    lines = (ROOT / "requirements" / "held.txt").read_text("utf-8").splitlines()
    held = {line for line in lines if not line.startswith("#")}
    assert held
    assert held <= {f"{release.name}=={release.version}" for release in LISTS["locked.txt"]}


@pytest.mark.parametrize("name", LISTS)
def test_every_release_has_hashes_and_no_line_says_where_it_comes_from(name):
    for release in LISTS[name]:
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})(?: |$)", release.text, re.MULTILINE)
        assert len(hashes) == len(release.text.splitlines()) - 1 >= 1, release.name
    text = (ROOT / "requirements" / name).read_text("utf-8")
    assert not re.findall(r"(?m)^.*(?:://|^-|@ ).*$", text)
    assert not re.findall(r"(?m)^.*(?:/home|/root|/tmp|\.org|\.com).*$", text)


@pytest.mark.parametrize("entry", ["numpy", "numpy>=2", "-r other.txt", "numpy @ file:///numpy.whl"])
def test_an_entry_that_pins_no_release_is_refused(entry):
    with pytest.raises(ValueError, match="pins no release"):
        read_list(f"# a comment\npillow==13.0.0 \\\n    --hash=sha256:00\n    # via tiny\n{entry}\n")


def test_where_the_lists_hold():
    assert foreign("Linux", "aarch64", "3.11") is None
    assert "this is Darwin, arm64, Python 3.11" in foreign("Darwin", "arm64", "3.11")
    assert "this is Linux, x86_64, Python 3.10" in foreign("Linux", "x86_64", "3.10")


BACKEND = """
import zipfile
from pathlib import Path

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "project-1.0-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder) / name, "w") as wheel:
        lines = ["Metadata-Version: 2.1", "Name: project", "Version: 1.0", "Requires-Dist: dependency>=1", ""]
        wheel.writestr("project-1.0.dist-info/METADATA", "\\n".join(lines))
        lines = ["Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any", ""]
        wheel.writestr("project-1.0.dist-info/WHEEL", "\\n".join(lines))
        wheel.writestr("project-1.0.dist-info/RECORD", "")
    return name
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment with pip and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture
def project(tmp_path, python, monkeypatch):
    """A project that needs `dependency>=1`, an index with 1.0 and 2.0, and a list that pins 2.0."""
    index = tmp_path / "index"
    index.mkdir()
    for version in ("1.0", "2.0"):
        write_empty_wheel(Release(name="dependency", version=version, marker=None, text=""), index)
    folder = tmp_path / "project"
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(ROOT / "requirements" / "install.py", folder / "requirements")
    digest = hashlib.sha256((index / "dependency-2.0-py3-none-any.whl").read_bytes()).hexdigest()
    (folder / "requirements" / "locked.txt").write_text(f"dependency==2.0 \\\n    --hash=sha256:{digest}\n")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "project"\nversion = "1.0"\ndependencies = ["dependency>=1"]\n'
    )
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONSTRAINT", os.devnull)
    return folder


def install(python: Path, project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        python,
        project / "requirements" / "install.py",
        project / "requirements" / "locked.txt",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True)


def installed(python: Path) -> dict[str, str]:
    """The packages of the environment; those that the tests install are removed again."""
    command = [python, "-m", "pip", "--disable-pip-version-check"]
    answer = subprocess.run(
        [*command, "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    versions = {package["name"]: package["version"] for package in json.loads(answer.stdout)}
    ours = {name: version for name, version in versions.items() if name in ("dependency", "project")}
    if ours:
        subprocess.run([*command, "uninstall", "--quiet", "--yes", *ours], check=True)
    return ours


def test_exactly_the_list_is_installed(python, project):
    answer = install(python, project, "--otherwise", ".")
    assert answer.returncode == 0, answer.stderr
    assert not answer.stdout
    assert installed(python) == {"dependency": "2.0", "project": "1.0"}


@pytest.mark.parametrize("how", ["variable", "configuration"])
def test_a_constraint_below_the_list_is_named_and_the_ranges_are_installed(
    python, project, tmp_path, monkeypatch, how
):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# of this machine\ndependency<2\n")
    if how == "variable":
        monkeypatch.setenv("PIP_CONSTRAINT", str(constraints))
    else:
        monkeypatch.delenv("PIP_CONSTRAINT")
        (tmp_path / "pip.conf").write_text(f"[global]\nconstraint = {constraints}\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    answer = install(python, project, "--otherwise", ".")
    assert answer.returncode == 0, answer.stderr
    (line,) = answer.stdout.splitlines()
    assert "dependency 2.0 is excluded by the constraint dependency<2; installing what pyproject" in line
    assert installed(python) == {"dependency": "1.0", "project": "1.0"}


def test_a_constraint_is_an_error_where_the_list_alone_may_be_installed(
    python, project, tmp_path, monkeypatch
):
    (tmp_path / "constraints.txt").write_text("dependency<2\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    answer = install(python, project)
    assert answer.returncode == 1
    assert "cannot be installed: dependency 2.0 is excluded by the constraint dependency<2" in answer.stderr
    assert installed(python) == {}


def test_all_releases_that_constraints_exclude_are_named(tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("torch<=2.9.1\ntorchvision<=0.24.1\nnumpy>=1.26\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    chosen = [r for r in LISTS["locked.txt"] if r.name in ("numpy", "pillow", "torch", "torchvision")]
    locked = {release.name: release.version for release in chosen}
    assert held(chosen) == (
        f"torch {locked['torch']} is excluded by the constraint torch<=2.9.1, "
        f"torchvision {locked['torchvision']} is excluded by the constraint torchvision<=0.24.1"
    )


def test_another_file_than_the_list_says_is_an_error_and_nothing_else_is_installed(python, project):
    path = project / "requirements" / "locked.txt"
    path.write_text(re.sub("sha256:.*", f"sha256:{'0' * 64}", path.read_text()))
    answer = install(python, project, "--otherwise", ".")
    assert answer.returncode == 1
    assert "DO NOT MATCH THE HASHES" in answer.stderr
    assert installed(python) == {}


@pytest.mark.parametrize("broken", ["constraints", "index"])
def test_another_failure_of_pip_is_an_error(python, project, tmp_path, monkeypatch, broken):
    if broken == "constraints":
        monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "missing.txt"))
    else:
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "missing"))
    answer = install(python, project, "--otherwise", ".")
    assert answer.returncode == 1
    assert ("missing.txt" if broken == "constraints" else "No matching distribution") in answer.stderr
    assert installed(python) == {}
