"""What the README promises a new user: its own-model example, from a wheel, outside of the tree."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment_without_torchport
from tests.test_wheel import build_wheel


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.serving
def test_your_own_model_from_a_wheel(tmp_path):
    (block,) = re.findall(r"<!-- tested:.*?-->\n```python\n(.*?)```", readme(), re.DOTALL)
    assert len(block.splitlines()) <= 40
    python, packages = environment_without_torchport(tmp_path / "environment")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-deps", "--target", packages, build_wheel(tmp_path)]
    subprocess.run(install, check=True, capture_output=True)
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
