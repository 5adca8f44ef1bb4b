"""The Open Inference Protocol's paths, for the API's description."""

from __future__ import annotations

from typing import Any


def oip_paths() -> dict[str, Any]:
    return {}
