"""Compiles a captured program to machine code: one `.aoti.pt2` file.

    content, facts = export_aotinductor(program)
    facts["built_for"]["torch"]

AOTInductor compiles for this kind of machine. The bytes differ from one build to the next, because a
C++ compiler makes them. They are verified like any other artifact.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchport.errors import ExportError
from torchport.export.program import gist, quiet
from torchport.store.zips import reproducible_zip
from torchport_runtime.backends.aotinductor import BUILT_FOR, built_here

if TYPE_CHECKING:
    from torch.export import ExportedProgram

CONFIG = {
    # The number of threads is the server's to choose, and not the exporting machine's.
    "cpp.dynamic_threads": True,
    # Nothing of a CPU's graph is worth worker processes.
    "compile_threads": 1,
    # Weights are laid out for the processor's kernels, once, when it is compiled.
    "freezing": True,
}


def export_aotinductor(program: ExportedProgram) -> tuple[bytes, dict[str, Any]]:
    """Compile a program. Returns the package's bytes, and facts for its record.

    Raises:
        ExportError: no C++ compiler is found, or AOTInductor cannot take the program.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None and shutil.which("clang++") is None:
        raise ExportError(
            f"AOTInductor needs a C++ compiler, and there is no {compiler!r}: apt-get install g++ (or name "
            "one in CXX), or leave aotinductor out of the recipe's backends"
        )
    try:
        from torch._inductor import aoti_compile_and_package
    except ImportError as err:
        raise ExportError("AOTInductor needs a later torch: pip install 'torch>=2.9'") from err
    with tempfile.TemporaryDirectory(prefix="torchport-aoti-") as name:
        path = Path(name) / "model.pt2"
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                aoti_compile_and_package(program, package_path=str(path), inductor_configs=CONFIG)
        except Exception as err:  # Lowering and the C++ compiler raise their own, with no common base class.
            raise ExportError(
                f"AOTInductor cannot compile it: {gist(err)}: leave aotinductor out of the recipe's backends"
            ) from err
        built = built_here()
        return _with_facts(path.read_bytes(), built), {"built_for": built}


def _with_facts(content: bytes, built: dict[str, Any]) -> bytes:
    """The package with a note of its target machine, its sources empty.

    Sources contain paths. torch 2.9 finds a graph's metadata by the name of its source, so the names stay.
    """
    source = zipfile.ZipFile(io.BytesIO(content))
    names = source.namelist()
    root = names[0].partition("/")[0]
    text = json.dumps(built, indent=2, sort_keys=True)
    entries = [(name, b"" if name.endswith(".cpp") else source.read(name)) for name in names]
    return reproducible_zip([*entries, (f"{root}/{BUILT_FOR}", text.encode())])
