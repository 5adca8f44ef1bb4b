"""Runs graphs that AOTInductor has compiled (`.aoti.pt2`) for one CPU.

    backend = AotInductorBackend(Path("main.aoti.pt2"), signature, BackendOptions(backend="aotinductor"))
    built_for(Path("main.aoti.pt2"))["torch"]            # "2.15.0"

The file says what it was compiled for. That is checked before its code is loaded: instructions that a
processor does not have end the process without a message.
"""

from __future__ import annotations

import json
import platform
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchport_runtime.backends.torch import TorchBackend
from torchport_runtime.errors import BackendError, SignatureError, one_line
from torchport_runtime.options import BackendOptions

BUILT_FOR = "extra/torchport.json"
"""The build record's path, below the package's own folder. The file format keeps `extra/` for additions."""

MAX_BYTES = 1 << 20
"""Maximum bytes of the build record, which lists a processor's instruction sets. A larger one is refused."""

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = re.compile(
    r"(sse|ssse|pni$|avx|amx|fma|f16c$|bmi|adx$|aes$|sha_ni$|sha512$|sm3$|sm4$|vaes$|v?pclmulqdq$|gfni$|movbe$|"
    r"movdir|popcnt$|abm$|rdrand$|rdseed$|clwb$|clflushopt$|clzero$|xsave|fsgsbase$|3dnowprefetch$|serialize$|"
    r"waitpkg$|cldemote$|enqcmd$|tsxldtrk$|lahf_lm$|rdpid$|cx16$|wbnoinvd$|uintr$|prefetch)"
)
"""Linux's x86 flags that a compiler may use. Other flags are the kernel's, or name the processor's
defects. On other processors all of Linux's flags count."""


def built_here() -> dict[str, Any]:
    """What an artifact that is compiled here needs: torch's version, instruction sets."""
    import torch

    return {
        "torch": torch.__version__.partition("+")[0],
        "system": platform.system(),
        "machine": platform.machine(),
        "instructions": _instructions(),
    }


def built_for(path: Path) -> dict[str, Any]:
    """Read what an artifact was compiled for, without loading its code.

    Raises:
        BackendError: the file is damaged, or its build record is missing.
    """
    try:
        with zipfile.ZipFile(path) as package:
            found = [info for info in package.infolist() if info.filename.endswith(f"/{BUILT_FOR}")]
            if len(found) != 1 or found[0].file_size > MAX_BYTES:
                raise BackendError(f"{path.name} does not say what it was compiled for: export it again")
            value = json.loads(package.read(found[0]))
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as err:
        raise BackendError(f"{path.name}: torch cannot load it: {one_line(err)}") from err
    if not isinstance(value, dict):
        raise BackendError(f"{path.name}: what it was compiled for cannot be read: export it again")
    return value


def why_not_here(built: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Why code `built` elsewhere cannot run `here`; None if it can."""
    for key, what in (("system", "for"), ("machine", "for"), ("torch", "with torch")):
        if built.get(key) != here[key]:
            return f"it was compiled {what} {built.get(key)}, this is {here[key]}"
    missing = sorted(set(map(str, built.get("instructions") or ())) - set(here["instructions"]))
    if missing:
        return f"it was compiled for a processor that has {', '.join(missing[:8])}, which this one has not"
    return None


class AotInductorBackend(TorchBackend):
    """Runs a `.aoti.pt2` file on the CPU.

    Every input is checked, because the compiled code does not: it would read past the end of an input that
    is too small.
    """

    def _choose_device(self, options: BackendOptions) -> str:
        if options.device.startswith("cuda"):
            raise BackendError(
                f"device {options.device!r} with backend 'aotinductor': these artifacts are compiled for the "
                "CPU; ask for device cpu or auto, or for another backend"
            )
        return "cpu"

    def _load(self, path: Path) -> Any:
        reason = why_not_here(built_for(path), built_here())
        if reason is not None:
            raise BackendError(
                f"{path.name} cannot run here: {reason}: export it on this kind of machine, or ask for "
                "another backend"
            )
        from torch._inductor import aoti_load_package

        return aoti_load_package(str(path))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            self._signature.check_input_shapes(inputs)
        except SignatureError as err:
            raise BackendError(f"{type(self).__name__} failed: {err}") from err
        return super().run(inputs)


def _instructions() -> list[str]:
    """The first processor's instruction sets, by Linux's names; elsewhere its model."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.is_file() else []
    for line in lines:
        name, _, text = line.partition(":")
        if name.strip() == "flags":
            return sorted(flag for flag in text.split() if _INSTRUCTIONS.match(flag))
        if name.strip() == "Features":
            return sorted(text.split())
    return [platform.processor()]
