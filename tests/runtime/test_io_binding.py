"""IO binding gives what a plain run gives: on the CPU, where it works too, and on a GPU."""

import sys
import types

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from torchport_runtime import BackendError, BackendOptions, Signature, TensorSpec
from torchport_runtime.backends import cuda
from torchport_runtime.backends.backend import open_backend

SIGNATURE = Signature(
    inputs={
        "x": TensorSpec("float32", ("batch", "time")),
        "keep": TensorSpec("bool", ("batch", "time")),
        "index": TensorSpec("int64", ("batch",)),
    },
    outputs={
        "kept": TensorSpec("float32", ("batch", "time")),
        "index_plus_one": TensorSpec("int64", ("batch",)),
        "places": TensorSpec("int64", (2, "found")),
    },
    dims={"time": (1, 64), "found": (1, 4096)},
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """`x` where it is kept and 0 elsewhere; the index plus one; and where `x` is not 0, whose size is known
    only when it was computed."""
    kinds = {"float32": TensorProto.FLOAT, "bool": TensorProto.BOOL, "int64": TensorProto.INT64}

    def values(specs):
        return [helper.make_tensor_value_info(n, kinds[s.dtype], list(s.shape)) for n, s in specs.items()]

    nodes = [
        helper.make_node("Where", ["keep", "x", "zero"], ["kept"]),
        helper.make_node("Add", ["index", "one"], ["index_plus_one"]),
        helper.make_node("NonZero", ["x"], ["places"]),
    ]
    constants = [
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("one", TensorProto.INT64, [], [1]),
    ]
    made = helper.make_graph(nodes, "g", values(SIGNATURE.inputs), values(SIGNATURE.outputs), constants)
    path = tmp_path_factory.mktemp("graph") / "main.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def inputs(batch, time, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "x": generator.standard_normal((batch, time)).astype(np.float32),
        "keep": generator.random((batch, time)) < 0.5,
        "index": generator.integers(-9, 9, batch),
    }


def strided(arrays):
    """The same values as views: every second value, rows from behind, columns first."""
    return {
        "x": np.repeat(arrays["x"], 2, axis=-1)[:, ::2],
        "keep": np.asfortranarray(arrays["keep"]),
        "index": arrays["index"][::-1].copy()[::-1],
    }


def both(graph, device="cpu"):
    return [
        open_backend(graph, SIGNATURE, BackendOptions(device=device, io_binding=bound, threads=1))
        for bound in (True, False)
    ]


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name])


def test_bound_is_plain_at_changing_sizes(graph):
    bound, plain = both(graph)
    for batch, time in [(1, 1), (4, 7), (2, 3), (64, 50), (1, 2)]:
        given = inputs(batch, time)
        assert_same(bound.run(given), plain.run(given))


def test_views_and_empty_arrays(graph):
    bound, plain = both(graph)
    given = inputs(5, 8)
    views = strided(given)
    assert not views["x"].flags.c_contiguous
    assert_same(bound.run(views), plain.run(given))
    for batch, time in [(0, 3), (3, 0), (0, 0)]:
        outputs = bound.run(inputs(batch, time))
        assert outputs["kept"].shape == (batch, time)
        assert_same(outputs, plain.run(inputs(batch, time)))


def test_an_answer_stays_when_the_graph_runs_again_and_inputs_are_left_alone(graph):
    bound, _ = both(graph)
    given = inputs(3, 4)
    before = {name: array.copy() for name, array in given.items()}
    first = bound.run(given)
    kept = {name: array.copy() for name, array in first.items()}
    for seed in range(5):
        bound.run(inputs(3, 4, seed + 1))
    assert_same(first, kept)
    assert_same(given, before)


def test_inputs_that_do_not_fit(graph):
    bound, _ = both(graph)
    for wrong in (
        {**inputs(2, 3), "keep": np.zeros((2, 5), bool)},
        {**inputs(2, 3), "x": np.zeros((2, 3))},
        {"x": inputs(2, 3)["x"]},
    ):
        with pytest.raises(BackendError, match="ONNX Runtime failed"):
            bound.run(wrong)
    assert bound.run(inputs(2, 3))["kept"].shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"device": "cuda:1"}, "cuda"),
        ({"device": "cuda:1", "io_binding": False}, None),
        ({"device": "cpu"}, None),
        ({"device": "cpu", "io_binding": True}, "cpu"),
    ],
)
def test_it_is_the_default_on_a_gpu_alone(graph, monkeypatch, options, expected):
    """Where outputs are bound to, by a stand-in for ONNX Runtime on a machine with two GPUs."""
    import onnxruntime

    places, names = [], ["CUDAExecutionProvider", "CPUExecutionProvider"]
    answers = [np.zeros((2, 3), np.float32), np.zeros(2, np.int64), np.zeros((2, 0), np.int64)]

    def session(path, session_options, providers):
        given = [p if isinstance(p, str) else p[0] for p in providers]
        node = types.SimpleNamespace
        binding = node(
            bind_cpu_input=lambda name, array: None,
            bind_output=lambda name, device, index: places.append((name, device, index)),
            copy_outputs_to_cpu=lambda: answers,
        )
        return node(
            get_providers=lambda: given,
            get_inputs=lambda: [node(name=name) for name in SIGNATURE.inputs],
            get_outputs=lambda: [node(name=name) for name in SIGNATURE.outputs],
            io_binding=lambda: binding,
            run_with_iobinding=lambda bound: None,
            run=lambda outputs, given: answers,
        )

    fake = types.SimpleNamespace(
        SessionOptions=onnxruntime.SessionOptions,
        GraphOptimizationLevel=onnxruntime.GraphOptimizationLevel,
        get_available_providers=lambda: names,
        InferenceSession=session,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(cuda, "cuda_device_count", lambda: 2)
    open_backend(graph, SIGNATURE, BackendOptions(**options)).run(inputs(2, 3))
    index = 1 if expected == "cuda" else 0
    assert places == ([(name, expected, index) for name in SIGNATURE.outputs] if expected else [])


def test_it_is_onnx_runtimes_and_an_option_that_old_runtimes_are_not_told_of():
    with pytest.raises(BackendError, match="only onnxruntime has it"):
        BackendOptions(backend="pt2", io_binding=True)
    with pytest.raises(BackendError, match="true or false"):
        BackendOptions(io_binding="yes")
    assert "io_binding" not in BackendOptions().to_json()
    assert BackendOptions(io_binding=True).to_json()["io_binding"] is True
    # It moves bytes and computes nothing: a certificate is not bound to it.
    assert BackendOptions(io_binding=True).numerics() == BackendOptions().numerics()


@pytest.mark.gpu
@pytest.mark.skipif(cuda.cuda_device_count() == 0, reason="needs a CUDA device")
def test_bound_is_plain_on_a_gpu(graph):
    bound, plain = both(graph, "cuda")
    assert (bound.device, bound.provider) == ("cuda:0", "CUDAExecutionProvider")
    for batch, time in [(1, 1), (64, 50), (0, 3)]:
        given = inputs(batch, time)
        assert_same(bound.run(strided(given)), plain.run(given))
