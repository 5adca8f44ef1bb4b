"""A request's headers, as a server's context has them.

RequestHeaders(context, 0)["content-type"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class RequestHeaders(Mapping[str, str]):
    """A request's headers by lower-case name, without those of form parts.

    They are read from the context on first use, because most handlers never look at them.
    """

    def __init__(self, context: Any, index: int) -> None:
        self._context, self._index = context, index
        self._all: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        ask = getattr(self._context, "get_request_header", None)
        if name == "explain" and self._all is None and ask is not None:
            # Looked for in every request: the other headers need not be read for it.
            value = ask(self._index, name)
            if isinstance(value, str):
                return value
            raise KeyError(name)
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> dict[str, str]:
        if self._all is None:
            try:
                headers = self._context.get_all_request_header(self._index)
            except (AttributeError, IndexError, TypeError):
                headers = {}
            self._all = {key.lower(): value for key, value in headers.items() if isinstance(value, str)}
        return self._all
