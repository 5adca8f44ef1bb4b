"""AOTInductor down the whole road: compiled, proven, carried, and refused where its code cannot run."""

import io
import json
import shutil
import textwrap
import zipfile

import numpy as np
import pytest

from tests.conftest import TINY
from torchport.archive.contents import inspect_archive
from torchport.archive.model import load
from torchport.errors import BackendError, ExportError
from torchport.export.exporting import export
from torchport.package.packaging import package
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.train.training import train
from torchport.verify.local.proving import verify_archive
from torchport.verify.verifying import verify
from torchport_runtime import BackendOptions
from torchport_runtime.backends import aotinductor as runtime
from torchport_runtime.backends.backend import open_backend

NAME = 'name, version, handler = "tiny", "1.0", "regressor"'
BACKENDS = 'backends = ships = ("torchscript", "aotinductor")'

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++: what is tested is what it compiles"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A store with an archive that carries a compiled graph: recipe, store, certificate."""
    folder = tmp_path_factory.mktemp("compiled")
    lines = f"{NAME}\n    {BACKENDS}"
    source = textwrap.dedent(TINY).replace(NAME, lines)
    (folder / "tiny_recipe.py").write_text(source)
    recipe, store = load_recipe(folder / "tiny_recipe.py"), Store(folder / "store")
    build = store.build("tiny", "1.0")
    train(recipe, build)
    export(recipe, build)
    result = verify(recipe, build)
    assert not result.failures
    package(recipe, store)
    return recipe, store, result.certificate


def opened(folder, recipe, path=None):
    (signature,) = recipe.signatures().values()
    options = BackendOptions(backend="aotinductor", device="cpu", threads=1)
    return open_backend(path or folder.path / "main.aoti.pt2", signature, options)


@needs_compiler
def test_it_has_a_certificate_like_the_others(compiled):
    recipe, store, certificate = compiled
    results = {r["backend"]: r for r in certificate["results"]}
    assert set(results) == {"torchscript", "aotinductor"}
    ours, theirs = results["aotinductor"], results["torchscript"]
    assert ours["cases"] == theirs["cases"] > 20
    assert ours["threads"] == {"counts": [1, 3], "compared": theirs["threads"]["compared"]}
    assert certificate["binding"]["artifacts"]["main.aoti.pt2"]
    assert certificate["binding"]["options"]["aotinductor"] == {"tf32": False}


@needs_compiler
def test_the_record_and_the_file_say_what_it_was_compiled_for(compiled):
    import torch

    recipe, store, _ = compiled
    folder = store.build("tiny", "1.0")
    built = folder.export_record()["artifacts"]["main.aoti.pt2"]["built_for"]
    assert built == runtime.built_for(folder.path / "main.aoti.pt2") == runtime.built_here()
    assert built["torch"] == torch.__version__.partition("+")[0]
    assert built["instructions"]
    with zipfile.ZipFile(folder.path / "main.aoti.pt2") as package_:
        assert not any(info.file_size for info in package_.infolist() if info.filename.endswith(".cpp"))


@needs_compiler
def test_the_archive_carries_it_and_it_is_proven_again(compiled):
    recipe, store, _ = compiled
    archive = store.archive("tiny", "1.0")
    assert inspect_archive(archive).problems == ()
    with load(archive, backend="aotinductor") as model:
        assert model.providers == {"main": "torch cpu"}
        ours = model.predict([1.0, 2.0, 3.0])
    with load(archive, backend="torchscript", device="cpu") as model:
        # 16 float32 epsilons of an output near 4.
        np.testing.assert_allclose(ours, model.predict([1.0, 2.0, 3.0]), atol=16 * 4 * 2**-23)
    proven = {r["backend"] for r in verify_archive(archive).record["results"] if r["passed"]}
    assert proven == {"torchscript", "aotinductor"}


@needs_compiler
def test_another_machine_is_refused_before_its_code_is_loaded(compiled, tmp_path, monkeypatch):
    recipe, store, _ = compiled
    folder = store.build("tiny", "1.0")
    here = runtime.built_here()
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda *a, **k: pytest.fail("it was loaded"))
    for change, reason in (
        ({"instructions": here["instructions"][1:]}, f"a processor that has {here['instructions'][0]}"),
        ({"torch": "2.8.0"}, "with torch .*, this is 2.8.0"),
        ({"machine": "riscv64"}, "compiled for .*, this is riscv64"),
        ({"system": "Darwin"}, "this is Darwin"),
    ):
        monkeypatch.setattr(runtime, "built_here", lambda change=change: here | change)
        with pytest.raises(BackendError, match=f"cannot run here: .*{reason}"):
            opened(folder, recipe)
    # What this processor has beyond what was asked for is no reason against it.
    assert runtime.why_not_here(here, here | {"instructions": [*here["instructions"], "new"]}) is None


@needs_compiler
def test_inputs_that_its_code_would_trust(compiled):
    recipe, store, _ = compiled
    backend = opened(store.build("tiny", "1.0"), recipe)
    right = np.ones((5, 3), np.float32)
    assert backend.run({"x": right})["y"].shape == (5, 2)
    assert np.isnan(backend.run({"x": np.full((5, 3), np.nan, np.float32)})["y"]).all()
    for wrong in (
        {"x": np.zeros((5, 2), np.float32)},
        {"x": np.zeros((5, 3))},
        {"x": np.zeros((0, 3), np.float32)},
        {"x": np.zeros((5, 3, 1), np.float32)},
        {},
    ):
        with pytest.raises(BackendError, match="AotInductorBackend failed"):
            backend.run(wrong)


@needs_compiler
def test_damaged_files(compiled, tmp_path):
    recipe, store, _ = compiled
    folder = store.build("tiny", "1.0")
    content = (folder.path / "main.aoti.pt2").read_bytes()
    path = tmp_path / "main.aoti.pt2"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BackendError, match="cannot load it"):
        opened(folder, recipe, path)

    def without(suffix):
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
            for info in source.infolist():
                if not info.filename.endswith(suffix):
                    target.writestr(info, source.read(info))
        return buffer.getvalue()

    path.write_bytes(without(runtime.BUILT_FOR))
    with pytest.raises(BackendError, match="does not say what it was compiled for"):
        opened(folder, recipe, path)
    path.write_bytes(without(".so"))
    with pytest.raises(BackendError, match="cannot load it"):
        opened(folder, recipe, path)


def test_a_gpu_is_refused_and_auto_is_the_cpu(tmp_path, write_recipe):
    recipe = load_recipe(write_recipe())
    (signature,) = recipe.signatures().values()
    path = tmp_path / "main.aoti.pt2"
    path.write_bytes(b"")
    with pytest.raises(BackendError, match="compiled for the CPU"):
        open_backend(path, signature, BackendOptions(backend="aotinductor", device="cuda"))
    assert not BackendOptions(backend="aotinductor").takes_gpu


def test_without_a_compiler(write_recipe, store, monkeypatch):
    recipe = load_recipe(write_recipe((NAME, f"{NAME}\n    {BACKENDS}")))
    folder = store.build("tiny", "1.0")
    train(recipe, folder)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ExportError, match="main.aoti.pt2: AOTInductor needs a C.. compiler.*apt-get install"):
        export(recipe, folder)
    optional = f'{NAME}\n    backends, optional_backends = ("torchscript", "aotinductor"), ("aotinductor",)'
    recipe = load_recipe(write_recipe((NAME, f'{optional}\n    ships = ("torchscript",)')))
    train(recipe, folder)
    record = export(recipe, folder).record
    assert "needs a C++ compiler" in record["failed"]["aotinductor"]
    assert json.loads(folder.export.read_text())["artifacts"].keys() == {"main.pt", "signature.json"}
