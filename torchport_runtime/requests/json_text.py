"""Values of answers as JSON text.

json_text({"label": "seven", "score": np.float32(0.5)})        # '{"label": "seven", "score": 0.5}'
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def json_text(value: Any) -> str:
    """An answer as JSON text; numpy's numbers and arrays become JSON's.

    Raises:
        TypeError, ValueError, RecursionError: JSON cannot hold the value, such as NaN or Inf.
    """
    return _JSON.encode(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that JSON can say")


_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, default=_plain)
