"""TensorRT's choice, options, engine cache and messages, as far as they show without a GPU; and on one."""

import os
import sys
import types

import numpy as np
import pytest

from torchport.recipe.loading import load_recipe
from torchport.recipe.variants import backend_options
from torchport.verify.verifying import verify
from torchport_runtime import BackendError, BackendOptions, Signature, TensorSpec
from torchport_runtime.backends import cuda, tensorrt
from torchport_runtime.backends.backend import open_backend

SIGNATURE = Signature(
    inputs={
        "x": TensorSpec("float32", ("batch", 3, "time")),
        "length": TensorSpec("int64", ("batch",)),
        "scale": TensorSpec("float32", ()),
    },
    outputs={"y": TensorSpec("float32", ("batch", 2))},
    dims={"batch": (1, 64), "time": (16, 512)},
)
PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
ASKED = BackendOptions(device="cuda:1", tensorrt=True)


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "main.onnx"
    path.write_bytes(b"a graph")
    return path


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A stand-in for ONNX Runtime on a machine with two GPUs; `runs` are the providers that start there, and
    `nodes` says how many of a graph's nodes each of them takes."""
    import onnxruntime

    monkeypatch.setenv("TORCHPORT_CACHE", str(tmp_path / "cache"))
    # Put back afterwards, whatever the backend makes of it.
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "unset")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")

    def make(available=PROVIDERS, runs=PROVIDERS, nodes=None, devices=2):
        nodes = {"TensorrtExecutionProvider": 3} if nodes is None else nodes
        sessions = []

        def session(path, options, providers):
            sessions.append(providers)
            names = [p if isinstance(p, str) else p[0] for p in providers]
            node = types.SimpleNamespace
            parts = [node(ep_name=ep, get_nodes=lambda n=n: ["node"] * n) for ep, n in nodes.items()]
            return node(
                get_providers=lambda: [name for name in names if name in runs],
                get_inputs=lambda: [node(name=name) for name in SIGNATURE.inputs],
                get_outputs=lambda: [node(name=name) for name in SIGNATURE.outputs],
                get_provider_graph_assignment_info=lambda: parts,
            )

        fake = types.SimpleNamespace(
            __version__="1.31.1",
            SessionOptions=onnxruntime.SessionOptions,
            GraphOptimizationLevel=onnxruntime.GraphOptimizationLevel,
            get_available_providers=lambda: list(available),
            InferenceSession=session,
            sessions=sessions,
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        monkeypatch.setattr(cuda, "cuda_device_count", lambda: devices)
        monkeypatch.setattr(tensorrt, "device_name", lambda index: f"GPU {index}")
        return fake

    return make


def test_tensorrt_comes_first_then_cuda_then_the_cpu(graph, machine):
    fake = machine()
    backend = open_backend(graph, SIGNATURE, ASKED)
    assert (backend.device, backend.provider) == ("cuda:1", "TensorrtExecutionProvider")
    ((trt, own), (cuda_name, cuda_own), last) = fake.sessions[0]
    assert [trt, cuda_name, last] == PROVIDERS
    assert cuda_own == {"device_id": "1", "use_tf32": "0"}
    assert {key: own[key] for key in own if "cache" not in key} == {
        "device_id": "1",
        "trt_fp16_enable": "False",
        "trt_bf16_enable": "False",
        "trt_profile_min_shapes": "x:1x3x16,length:1",
        "trt_profile_opt_shapes": "x:8x3x16,length:8",
        "trt_profile_max_shapes": "x:64x3x512,length:64",
    }
    assert own["trt_engine_cache_enable"] == own["trt_timing_cache_enable"] == "True"
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"  # ONNX Runtime has no option against it.


def test_tf32_is_left_alone_where_it_is_asked_for(graph, machine):
    machine()
    open_backend(graph, SIGNATURE, BackendOptions(device="cuda", tensorrt=True, tf32=True))
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ


def test_it_is_opt_in(graph, machine):
    fake = machine()
    assert open_backend(graph, SIGNATURE, BackendOptions(device="cuda")).provider == "CUDAExecutionProvider"
    assert [p if isinstance(p, str) else p[0] for p in fake.sessions[0]] == PROVIDERS[1:]


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ({"available": PROVIDERS[1:]}, "no TensorRT provider .*pip install onnxruntime-gpu"),
        ({"runs": PROVIDERS[1:]}, "TensorRT did not start .*pip install tensorrt"),
        ({"runs": PROVIDERS[2:]}, "TensorRT did not start"),
        ({"nodes": {"CUDAExecutionProvider": 3}}, "takes none of the graph's nodes; CUDAExecutionProvider"),
        ({"devices": 0}, "no CUDA device or no NVIDIA driver"),
        ({"devices": 1}, r"has 1 CUDA device\(s\), numbered from 0"),
    ],
)
def test_asked_for_and_not_to_be_had_is_an_error(graph, machine, there, reason):
    machine(**there)
    with pytest.raises(BackendError, match=f"tensorrt: true was asked for, but .*{reason}"):
        open_backend(graph, SIGNATURE, ASKED)


def test_engines_are_kept_by_all_that_they_depend_on(graph, machine, tmp_path):
    machine()

    def folder(options=ASKED, version="1.31.1", signature=SIGNATURE):
        own = tensorrt.provider_options(graph, signature, options, version)
        assert own["trt_engine_cache_path"] == own["trt_timing_cache_path"]
        return own["trt_engine_cache_path"]

    first = folder()
    assert folder() == first
    assert os.path.dirname(first) == str(tmp_path / "cache" / "tensorrt")
    assert os.stat(first).st_mode & 0o777 == 0o700  # Engines are programs.
    smaller = Signature(
        inputs=SIGNATURE.inputs, outputs=SIGNATURE.outputs, dims={"batch": (1, 8), "time": (16, 512)}
    )
    others = [
        folder(version="1.32.0"),
        folder(BackendOptions(device="cuda", tensorrt=True)),  # The other GPU.
        folder(BackendOptions(device="cuda:1", tensorrt=True, tf32=True)),
        folder(BackendOptions(device="cuda:1", tensorrt=True, precision="float16")),
        folder(signature=smaller),
    ]
    graph.write_bytes(b"another graph")
    others.append(folder())
    assert len({first, *others}) == 7


def test_the_cache_is_the_users_own_and_one_that_cannot_be_written_is_told(graph, machine, tmp_path):
    machine()
    home = tensorrt.cache_folder({"XDG_CACHE_HOME": "/var/own"})
    assert str(home) == os.path.join("/var/own", "torchport", "tensorrt")
    (tmp_path / "file").write_text("")
    environ = {"TORCHPORT_CACHE": str(tmp_path / "file")}
    with pytest.raises(BackendError, match="set TORCHPORT_CACHE"):
        tensorrt.provider_options(graph, SIGNATURE, ASKED, "1", environ)


def test_half_precision_is_told_to_it(graph, machine):
    fake = machine()
    open_backend(graph, SIGNATURE, BackendOptions(device="cuda", tensorrt=True, precision="float16"))
    assert fake.sessions[0][0][1]["trt_fp16_enable"] == "True"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "cpu"}, "on a GPU: ask for backend onnxruntime and device cuda"),
        ({"device": "auto"}, "on a GPU"),
        ({"device": "cuda", "backend": "pt2"}, "on a GPU"),
        ({"device": "cuda", "precision": "int8"}, "int8"),
        ({"device": "cuda", "tensorrt": 1}, "true or false"),
    ],
)
def test_wrong_options_say_what_is_right(options, reason):
    with pytest.raises(BackendError, match=reason):
        BackendOptions(**{"tensorrt": True, **options})


def test_the_environment_has_its_say_and_certificates_are_bound_to_it():
    config = {"device": "cuda", "tensorrt": True}
    assert BackendOptions.from_config(config).numerics()["tensorrt"] is True
    off = BackendOptions.from_config(config, {"TORCHPORT_TENSORRT": "false"})
    assert "tensorrt" not in off.numerics()
    assert "tensorrt" not in off.to_json()
    with pytest.raises(BackendError, match="TORCHPORT_TENSORRT='perhaps'"):
        BackendOptions.from_config(config, {"TORCHPORT_TENSORRT": "perhaps"})


NAME = 'name, version, handler = "tiny", "1.0", "regressor"'
IMPORT = "from torchport import Recipe"
OPTIONS = (NAME, f'{NAME}\n    options = BackendOptions(device="cuda", tensorrt=True)')


@pytest.mark.skipif(cuda.cuda_device_count() > 0, reason="on a GPU it may be proven")
def test_no_certificate_without_a_gpu(built):
    """One of the CPU's numbers would be bound to options that it does not speak of."""
    recipe, folder = built(
        (IMPORT, "from torchport_runtime import BackendOptions\nfrom torchport import Recipe"), OPTIONS
    )
    with pytest.raises(BackendError, match="tensorrt: true was asked for, but"):
        verify(recipe, folder)
    with pytest.raises(BackendError, match="proven on a CUDA device only; the devices given are cpu"):
        verify(recipe, folder, devices=["cpu"])
    assert folder.certificate() is None


def test_other_backends_and_devices_of_such_a_recipe_are_proven_without(write_recipe):
    change = (IMPORT, "from torchport_runtime import BackendOptions\nfrom torchport import Recipe")
    recipe = load_recipe(write_recipe(change, OPTIONS))
    assert backend_options(recipe, "onnxruntime").tensorrt
    assert backend_options(recipe, "onnxruntime", "cuda").tensorrt
    assert not backend_options(recipe, "onnxruntime", "cpu").tensorrt
    assert not backend_options(recipe, "torchscript", "cuda").tensorrt


def tensorrt_is_here():
    import importlib.util

    return cuda.cuda_device_count() > 0 and importlib.util.find_spec("tensorrt") is not None


@pytest.mark.gpu
@pytest.mark.skipif(not tensorrt_is_here(), reason="needs a CUDA device and TensorRT")
def test_tensorrt_computes_what_the_cpu_does_and_keeps_its_engine(built, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHPORT_CACHE", str(tmp_path / "cache"))
    recipe, folder = built()
    (signature,) = recipe.signatures().values()
    path = folder.path / "main.onnx"
    x = {"x": np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)}
    on = [
        open_backend(path, signature, options)
        for options in (BackendOptions(device="cpu"), BackendOptions(device="cuda", tensorrt=True))
    ]
    # 16 float32 epsilons of an output near 4: TF32 would be off by a hundred times that.
    np.testing.assert_allclose(on[0].run(x)["y"], on[1].run(x)["y"], atol=16 * 4 * np.finfo(np.float32).eps)
    assert list((tmp_path / "cache").rglob("*.engine"))
