"""Processes that begin with all imports done: forked from a server that has torch and the exporter.

    done = torchport("train", "linear", "--store", folder)
    done.returncode, done.stdout, done.stderr

A new interpreter imports torch, scikit-learn and the exporter for six seconds first, and the suite has a
hundred commands and children that need them.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

from tests.conftest import ROOT

children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(
    ["sklearn", "onnxruntime", "torchport.package.packaging", "tests.exporter_warmed_up"]
)


def torchport(*arguments: object, cwd: Path = ROOT, **environment: str) -> CompletedProcess[str]:
    """The `torchport` command as `python -m torchport` runs it in `cwd`, as a process of its own."""
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        child = children.Process(target=_run, args=(words, cwd, {**os.environ, **environment}, said))
        child.start()
        child.join()
        stdout, stderr = (path.read_text(encoding="utf-8") for path in said)
    assert child.exitcode is not None
    return CompletedProcess(["torchport", *words], child.exitcode, stdout, stderr)


def _run(words: list[str], cwd: Path, environment: Mapping[str, str], said: list[Path]) -> None:
    for descriptor, path in zip((1, 2), said, strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [str(cwd), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    sys.argv[1:] = words
    runpy.run_module("torchport", run_name="__main__", alter_sys=True)
