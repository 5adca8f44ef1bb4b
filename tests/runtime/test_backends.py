"""Provider choice and messages, as far as they can be seen without a GPU; and on one, where there is one."""

import sys
import types

import numpy as np
import pytest

from torchport_runtime import BackendError, BackendOptions, Signature, TensorSpec
from torchport_runtime.backends import backend as backends
from torchport_runtime.backends import cuda

SIGNATURE = Signature(
    inputs={"x": TensorSpec("float32", ("batch", 3))}, outputs={"y": TensorSpec("float32", ("batch", 2))}
)


@pytest.fixture
def graph(built):
    _, folder = built()
    return folder.path / "main.onnx"


class FakeRuntime(types.SimpleNamespace):
    """ONNX Runtime as it would be on a machine with a GPU; `started` is whether CUDA comes up there."""

    def __init__(self, available, started=True):
        import onnxruntime

        super().__init__(
            SessionOptions=onnxruntime.SessionOptions,
            GraphOptimizationLevel=onnxruntime.GraphOptimizationLevel,
            get_available_providers=lambda: available,
            preload_dlls=lambda directory: self.preloaded.append(directory),
            preloaded=[],
            sessions=[],
        )

        def session(path, options, providers):
            self.sessions.append(providers)
            names = [p if isinstance(p, str) else p[0] for p in providers]
            kept = [n for n in names if started or n == "CPUExecutionProvider"]
            node = types.SimpleNamespace
            return types.SimpleNamespace(
                get_providers=lambda: kept,
                get_inputs=lambda: [node(name="x")],
                get_outputs=lambda: [node(name="y")],
            )

        self.InferenceSession = session


@pytest.fixture
def gpu_machine(monkeypatch):
    def make(available=("CUDAExecutionProvider", "CPUExecutionProvider"), started=True, devices=2):
        fake = FakeRuntime(list(available), started)
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        monkeypatch.setattr(cuda, "cuda_device_count", lambda: devices)
        return fake

    return make


def test_auto_takes_cuda_where_it_comes_up(graph, gpu_machine):
    fake = gpu_machine()
    backend = backends.open_backend(graph, SIGNATURE, BackendOptions(device="auto"))
    assert (backend.device, backend.provider) == ("cuda:0", "CUDAExecutionProvider")
    assert fake.preloaded == [""]  # From the nvidia packages: no torch needed.
    assert fake.sessions == [
        [("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"}), "CPUExecutionProvider"]
    ]


def test_a_second_device_and_tf32_when_asked_for(graph, gpu_machine):
    fake = gpu_machine()
    backend = backends.open_backend(graph, SIGNATURE, BackendOptions(device="cuda:1", tf32=True))
    assert backend.device == "cuda:1"
    assert fake.sessions[0][0] == ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "1"})


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"available": ("CPUExecutionProvider",)}, "pip install onnxruntime-gpu"),
        ({"devices": 0}, "no CUDA device or no NVIDIA driver"),
        ({"started": False}, "CUDA provider did not start"),
    ],
)
def test_without_cuda_auto_is_the_cpu_and_cuda_is_an_error(graph, gpu_machine, machine, reason, caplog):
    gpu_machine(**machine)
    with caplog.at_level("INFO"):
        backend = backends.open_backend(graph, SIGNATURE, BackendOptions(device="auto"))
    assert backend.device == "cpu"
    assert reason in caplog.text
    with pytest.raises(BackendError, match=reason):
        backends.open_backend(graph, SIGNATURE, BackendOptions(device="cuda"))


def test_a_device_beyond_the_last(graph, gpu_machine):
    gpu_machine(devices=2)
    with pytest.raises(BackendError, match=r"has 2 CUDA device\(s\), numbered from 0"):
        backends.open_backend(graph, SIGNATURE, BackendOptions(device="cuda:2"))


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_a_missing_library_says_how_to_get_it(graph, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    backend = "onnxruntime" if name == "onnxruntime" else "torchscript"
    with pytest.raises(BackendError, match=f"pip install {name}"):
        backends.open_backend(
            graph.with_suffix(".onnx" if name == "onnxruntime" else ".pt"),
            SIGNATURE,
            BackendOptions(backend=backend, device="cpu"),
        )


@pytest.mark.parametrize(
    ("backend", "suffix"), [("onnxruntime", ".onnx"), ("torchscript", ".pt"), ("pt2", ".pt2")]
)
def test_truncated_artifacts_and_wrong_inputs(graph, backend, suffix):
    path = graph.with_suffix(suffix)
    options = BackendOptions(backend=backend, device="cpu", threads=1)
    opened = backends.open_backend(path, SIGNATURE, options)
    assert opened.run({"x": np.zeros((5, 3), np.float32)})["y"].shape == (5, 2)
    with pytest.raises(BackendError, match="failed"):
        opened.run({"x": np.zeros((5, 4), np.float32)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BackendError, match="cannot load it"):
        backends.open_backend(path, SIGNATURE, options)
    path.unlink()
    with pytest.raises(BackendError, match="which is not there"):
        backends.open_backend(path, SIGNATURE, options)


def test_a_graph_of_another_signature(graph):
    other = Signature(inputs={"z": SIGNATURE.inputs["x"]}, outputs=SIGNATURE.outputs)
    with pytest.raises(BackendError, match=r"inputs are \['x'\], the signature has \['z'\]"):
        backends.open_backend(graph, other, BackendOptions(device="cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(backends.cuda_device_count() == 0, reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("backend", "suffix"), [("onnxruntime", ".onnx"), ("torchscript", ".pt"), ("pt2", ".pt2")]
)
def test_cuda_computes_what_the_cpu_does(graph, backend, suffix):
    path = graph.with_suffix(suffix)
    x = {"x": np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)}
    on = [
        backends.open_backend(path, SIGNATURE, BackendOptions(backend=backend, device=device))
        for device in ("cpu", "cuda")
    ]
    assert on[1].device == "cuda:0"
    # 16 float32 epsilons of an output near 4: TF32 would be off by a hundred times that.
    np.testing.assert_allclose(on[0].run(x)["y"], on[1].run(x)["y"], atol=16 * 4 * np.finfo(np.float32).eps)
