"""Triton's server, as PyPI's `nvidia-pytriton` carries it, in an environment of its own.

with triton_server(Environment.made("triton"), archives.mean_onnx, Path(".cache/bench/E/triton")) as server:
    ask(rest_question(server, rows))

One instance of a model of the Python backend, so that Triton and torchport serve do the same work in the
same runtime.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.contenders import APPS, Server, free_port, running
from bench.environments import Environment
from bench.mean_magnitude import MAX_ROWS, rows_of
from bench.tensors import MODEL, rest_question

MODEL_FILE = APPS / "triton_model.py"
STUB = "triton_python_backend_stub"
CONFIGURATION = f"""name: "{MODEL}"
backend: "python"
max_batch_size: {MAX_ROWS}
input [{{ name: "x", data_type: TYPE_FP32, dims: [-1] }}]
output [{{ name: "y", data_type: TYPE_FP32, dims: [1] }}]
instance_group [{{ count: 1, kind: KIND_CPU }}]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
"""
"""Batches of what has come, without a wait: as torchport serve does."""


@contextmanager
def triton_server(environment: Environment, model: Path, folder: Path, *, port: int = 0) -> Iterator[Server]:
    """Triton with the model of this ONNX file."""
    home = environment.packages / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # The backend takes the stub that lies beside it, and comes with one for each Python.
    shutil.copy(home / "python_backend_stubs" / version / STUB, home / "backends" / "python" / STUB)
    rest, grpc, metrics = port or free_port(), free_port(), free_port()
    command = [str(home / "bin" / "tritonserver"), "--model-repository", str(_repository(model, folder))]
    command += ["--backend-directory", str(home / "backends"), "--exit-timeout-secs", "5"]
    for kind, number in (("http", rest), ("grpc", grpc), ("metrics", metrics)):
        command += [f"--{kind}-address", "127.0.0.1", f"--{kind}-port", str(number)]
    libraries = environment.packages / "nvidia_pytriton.libs", Path(sys.base_prefix) / "lib"
    variables = {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        # The stub embeds Python, which finds the virtual environment as the program `python3` does.
        "PATH": os.pathsep.join((str(environment.path / "bin"), os.environ["PATH"])),
    }
    url = f"http://127.0.0.1:{rest}/v2/models/{MODEL}/infer"
    with running(command, variables, rest_question(Server(url=url, pid=0), rows_of(1, 192))) as pid:
        yield Server(url=url, pid=pid, grpc=f"127.0.0.1:{grpc}")


def _repository(model: Path, folder: Path) -> Path:
    """A model repository with this model only."""
    shutil.rmtree(folder, ignore_errors=True)
    version = folder / MODEL / "1"
    version.mkdir(parents=True)
    (folder / MODEL / "config.pbtxt").write_text(CONFIGURATION, encoding="utf-8")
    shutil.copy(MODEL_FILE, version / "model.py")
    shutil.copy(model, version / "main.onnx")
    return folder.resolve()
