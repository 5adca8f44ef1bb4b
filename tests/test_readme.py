"""What the README promises a new user: its own-model example, from a wheel, outside of the tree."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment_without_torchport


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.serving
def test_your_own_model_from_a_wheel(tmp_path):
    (block,) = re.findall(r"<!-- tested:.*?-->\n```python\n(.*?)```", readme(), re.DOTALL)
    assert len(block.splitlines()) <= 40
    source = tmp_path / "source"
    tracked = ("torchport", "torchport_runtime", "export", "handlers", "deploy")
    for name in tracked:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(wheel, check=True, capture_output=True)
    python, packages = environment_without_torchport(tmp_path / "environment")
    (built,) = tmp_path.glob("torchport-*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", packages, built], check=True, capture_output=True
    )
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "spiral.py").write_text(block)

    def torchport(*arguments):
        command = [python, "-m", "torchport", *arguments]
        return subprocess.run(command, cwd=mine, capture_output=True, text=True, check=False)

    shipped = torchport("ship", "spiral.py")
    assert shipped.returncode == 0, shipped.stderr
    assert "  [1.0, 0.5] -> [" in shipped.stdout
    assert torchport("infer", "spiral", "--repeat", "1").returncode == 0
    listed = torchport("list")
    assert "linear" in listed.stdout
    assert "digits_resnet18" in listed.stdout
    assert "does not load" not in listed.stdout
    trained = torchport("train", "linear")
    assert trained.returncode == 0, trained.stderr


def test_every_command_and_target_that_is_named_exists():
    command = [sys.executable, "-m", "torchport", "--help"]
    help_text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in re.findall(r"^\| `torchport ([a-z]+)", readme(), re.MULTILINE):
        assert re.search(rf"\b{name}\b", help_text), name
    makefile = (ROOT / "Makefile").read_text()
    for line in re.findall(r"^make (.+?)(?:\s+#.*)?$", readme(), re.MULTILINE):
        for target in line.split():
            if "=" not in target:
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
