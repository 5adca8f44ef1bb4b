"""The `shadow:` block of `model-config.yaml`: a second backend to compare with.

    torchport:
      backend: onnxruntime
      shadow: {backend: torchscript, fraction: 0.1}

Further keys: `precision`, `device` and `threads` of that backend; `share`, the part of one processor's
time that it may take; `examples`, a folder for the input on which the two differ most. Without `examples`
no input is stored, because inputs may be private.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torchport_runtime.errors import BackendError
from torchport_runtime.suggest import did_you_mean

MIN_FRACTION, MIN_SHARE = 1e-6, 1e-4
"""Minimum fraction, one row in a million, and minimum share, nine seconds of processor time a day. Less is
refused as a mistake."""


@dataclass(frozen=True, kw_only=True)
class ShadowOptions:
    """Options of a shadow: its backend, and how much traffic it gets.

    The default is one thread on the CPU, because a shadow uses idle time only. The backend's own options
    are checked by `BackendOptions`.

    Raises:
        BackendError: `fraction` or `share` is below its minimum or above 1, or `examples` is not text.
    """

    backend: str
    fraction: float
    precision: str = "float32"
    device: str = "cpu"
    threads: int = 1
    share: float = 0.01
    examples: str = ""

    def __post_init__(self) -> None:
        for name, least, what in (
            ("fraction", MIN_FRACTION, "all requests"),
            ("share", MIN_SHARE, "all the time of a processor"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= 1:
                raise BackendError(f"shadow.{name} {value!r}: {least:g} at least, and 1 ({what}) at most")
        if not isinstance(self.examples, str):
            raise BackendError(f"shadow.examples {self.examples!r}: the path of a folder is expected")

    @classmethod
    def read(cls, given: Any) -> ShadowOptions | None:
        """Read the block, or a text such as "torchscript=0.1".

        "off" and nothing give None.

        Raises:
            BackendError: the value is something else, or holds unknown or wrong keys.
        """
        if given is None or isinstance(given, ShadowOptions):
            return given
        if isinstance(given, str):
            return cls._from_text(given)
        if not isinstance(given, Mapping):
            raise BackendError(f"shadow: {given!r}, expected {{backend: torchscript, fraction: 0.1}}")
        known = [f.name for f in fields(cls)]
        for key in given:
            if key not in known:
                raise BackendError(f"shadow.{key} is not known, {did_you_mean(str(key), known)}")
        for key in ("backend", "fraction"):
            if key not in given:
                raise BackendError(f"shadow: {key} is missing: {{backend: torchscript, fraction: 0.1}}")
        return cls(**given)

    @classmethod
    def _from_text(cls, text: str) -> ShadowOptions | None:
        if text.lower() in ("", "off"):
            return None
        backend, _, fraction = text.partition("=")
        try:
            number = float(fraction)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BackendError(f"shadow {text!r}: expected BACKEND=FRACTION, such as torchscript=0.1, or off")
        return cls(backend=backend, fraction=number)

    def to_json(self) -> dict[str, Any]:
        """The block, without the keys that have their default."""
        defaults = {f.name: f.default for f in fields(self)}
        return {key: value for key, value in asdict(self).items() if value != defaults[key]}
