import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest

import torchport
from tests.archive_edits import resealed, rewrite
from torchport.errors import ArchiveError, BackendError, BadRequest


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript"])
def test_answers_in_process(linear_archive, backend):
    with torchport.load(linear_archive, backend=backend) as model:
        (answer,) = model.predict([4.0])
        assert 13 < answer < 15
        pair = model.predict({"instances": [[4.0], [5.0]]})
        np.testing.assert_allclose(pair[0][0], answer, rtol=1e-6)  # Float32 rounding.
        many = model.predict_many([[4.0], "nonsense", [5.0]])
        assert many[0] == [answer]
        assert isinstance(many[1], BadRequest)
        with pytest.raises(BadRequest, match="got float32"):
            model.predict([1.0, 2.0])


def test_images_and_parameters(digits_archive):
    from torchport.recipe.loading import load_recipe

    request = load_recipe("digits_resnet18").requests()[0]
    with torchport.load(digits_archive) as model:
        assert model.providers == {"main": "CPUExecutionProvider"}
        assert len(model.predict(request.body)) == 5
        assert len(model.predict(request.body, k=2)) == 2
        with pytest.raises(BadRequest, match="k='11'"):
            model.predict(request.body, k=11)


def test_the_archives_own_runtime_is_used_and_ours_is_kept(linear_archive):
    import torchport_runtime

    ours = [getattr(torchport_runtime, name) for name in torchport_runtime.__all__]
    before = dict(sys.modules)
    with torchport.load(linear_archive) as model:
        handler = type(model._handler)
        assert sys.modules["torchport_runtime"] is torchport_runtime
        assert not issubclass(handler, torchport_runtime.Handler)
        assert handler.__mro__[1].__module__ == "torchport_runtime.handler"
        # Whenever the handler asks for it.
        theirs = [getattr(model._runtime, name) for name in torchport_runtime.__all__]
        assert not any(their is our for their, our in zip(theirs, ours, strict=True))
        assert model._runtime.images is not torchport_runtime.images
    assert {n for n in sys.modules if n.startswith("torchport_runtime")} == {
        n for n in before if n.startswith("torchport_runtime")
    }


def test_two_archives_side_by_side(linear_archive, digits_archive):
    with torchport.load(linear_archive) as one, torchport.load(digits_archive) as two:
        assert (one.name, two.name) == ("linear", "digits_resnet18")
        assert one.predict([4.0])


def test_a_device_that_is_not_there_is_an_error_and_auto_is_not(linear_archive):
    for backend in ("onnxruntime", "torchscript"):
        with pytest.raises(BackendError, match="'cuda:9' was asked for, but .*: ask for cpu or auto"):
            torchport.load(linear_archive, device="cuda:9", backend=backend)
        torchport.load(linear_archive, device="auto", backend=backend).close()


def test_a_backend_that_does_not_travel(linear_archive):
    with pytest.raises(BackendError, match="needs main.pt2, which is not there"):
        torchport.load(linear_archive, backend="pt2")


def test_an_archive_of_others(tmp_path):
    path = tmp_path / "other-1.0.mar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", '{"model": {"modelName": "other"}}')
    with pytest.raises(ArchiveError, match="not an archive that torchport made"):
        torchport.load(path)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            lambda code: code + b"\nclass Second: pass\n",
            ArchiveError,
            "2 classes of its own, and one is expected",
        ),
        (lambda code: b"", ArchiveError, "0 classes of its own"),
        (lambda code: code + b"\nraise RuntimeError('of its own')\n", RuntimeError, "of its own"),
        (lambda code: code + b"\nimport sys; del sys.modules[__name__]\n", None, ""),
    ],
)
def test_nothing_of_a_broken_handler_is_left_to_the_next(linear_archive, tmp_path, change, error, said):
    broken = resealed(linear_archive, tmp_path / "broken-1.0.mar", {"regressor.py": change})
    if error is None:
        torchport.load(broken).close()
    else:
        with pytest.raises(error, match=said):
            torchport.load(broken)
    assert "regressor" not in sys.modules
    with torchport.load(linear_archive) as model:
        assert model.predict([4.0])


def test_a_module_of_the_handlers_name_is_neither_taken_for_it_nor_lost(linear_archive, monkeypatch):
    mine = types.ModuleType("regressor")
    monkeypatch.setitem(sys.modules, "regressor", mine)
    with torchport.load(linear_archive) as model:
        assert model.predict([4.0])
    assert sys.modules["regressor"] is mine


def test_a_truncated_graph_in_an_archive_is_refused(linear_archive, tmp_path):
    changed = rewrite(linear_archive, tmp_path / "x-1.0.mar", {"main.onnx": b"\x08"})
    with pytest.raises(ArchiveError, match="main.onnx is not what"):
        torchport.load(changed)


def test_onnx_runtime_answers_with_no_torch_imported(linear_archive):
    code = (
        "import sys, torchport\n"
        f"print(torchport.load({str(linear_archive)!r}).predict([4.0]))\n"
        "print(any(name.split('.')[0] == 'torch' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "False"
