"""The handler's `context`: TorchServe's `Context`, attribute by attribute.

context.system_properties["model_dir"]
context.get_request_header(0, "content-type")
context.set_response_status(code=404, phrase="Not Found", idx=0)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torchport.server.wire import Row


class Headers(dict[str, Any]):
    """Headers with the client's spelling of names, found regardless of case."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._names = {name.lower(): name for name in self}

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(self._names[name.lower()])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._names

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(self._names.get(name.lower(), name), default)


class RequestProcessor:
    """One request's headers, and its answer's status and headers.

    The request's headers are decoded on first use.
    """

    __slots__ = ("_headers", "_reason_phrase", "_response_header", "_row", "_status_code")

    def __init__(self, row: Row) -> None:
        self._row = row
        self._headers: Headers | None = None
        self._status_code = 200
        self._reason_phrase: str | None = None
        self._response_header: dict[str, str] = {}

    def get_request_property(self, key: str) -> str | None:
        if self._headers is None and key == "explain":
            # Asked of every request, and last among its headers: the others need not be read for it.
            name, text = self._row.headers[-1] if self._row.headers else (b"", b"")
            if name == b"explain":
                return text.decode()
        value: str | None = self.get_request_properties().get(key)
        return value

    def get_request_properties(self) -> Headers:
        if self._headers is None:
            parts = [(field.name, {"content-type": field.content_type}) for field in self._row.fields]
            sent = [(name.decode("latin-1"), _text(name, value)) for name, value in self._row.headers]
            self._headers = Headers([*parts, *sent])
        return self._headers

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        self._status_code = code
        self._reason_phrase = reason_phrase

    def get_response_status_code(self) -> int:
        return self._status_code

    def get_response_status_phrase(self) -> str | None:
        return self._reason_phrase

    def add_response_property(self, key: str, value: str) -> None:
        self._response_header[key] = value

    def get_response_headers(self) -> dict[str, str]:
        return self._response_header

    def get_response_header(self, key: str) -> str | None:
        return self._response_header.get(key)


def _text(name: bytes, value: bytes) -> str:
    """A header's value as text.

    HTTP's headers are Latin-1; `url_path`, the end of the path, is UTF-8.
    """
    return value.decode("utf-8", "replace") if name == b"url_path" else value.decode("latin-1")


class Context:
    """A model's folder, manifest and configuration, and the current batch.

    Args:
        gpu: number of this worker's CUDA device; None on the CPU.
    """

    cl_socket: Any
    """Takes pieces of a streamed answer; set from the first batch on."""

    def __init__(
        self,
        *,
        model_name: str,
        model_dir: str,
        manifest: Mapping[str, Any],
        batch_size: int,
        gpu: int | None,
        limit_max_image_pixels: bool,
        metrics: Any,
        model_yaml_config: Mapping[str, Any],
        server_version: str,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.system_properties = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",  # TorchServe's own, which handlers may look for.
            "server_version": server_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }
        self.metrics = metrics
        self.model_yaml_config = model_yaml_config
        self.request_ids: dict[int, str] | None = None
        self.request_processor: list[RequestProcessor] = []
        self.stopping_criteria: Any = None
        self.header_key_sequence_id = os.environ.get("TS_REQUEST_SEQUENCE_ID", "ts_request_sequence_id")
        self.header_key_sequence_start = os.environ.get(
            "TS_REQUEST_SEQUENCE_START", "ts_request_sequence_start"
        )
        self.header_key_sequence_end = os.environ.get("TS_REQUEST_SEQUENCE_END", "ts_request_sequence_end")

    def get_request_id(self, idx: int = 0) -> str | None:
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> str | None:
        return self.request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> Headers:
        return self.request_processor[idx].get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        return self.get_response_headers(idx).get("content-type")

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        processor = self.request_processor[idx]
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        if self.request_processor and self.request_processor[idx] is not None:
            self.request_processor[idx].report_status(code, reason_phrase=phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        for processor in self.request_processor:
            processor.report_status(code, reason_phrase=phrase)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        return self.request_processor[idx].get_response_headers()

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.request_processor[idx].add_response_property(key, value)

    def get_sequence_id(self, idx: int) -> str | None:
        return self.request_processor[idx].get_request_property(self.header_key_sequence_id)
