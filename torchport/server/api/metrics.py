"""The metrics API: `GET /metrics` in Prometheus' text format; `?name[]=` selects families."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from torchport.server.api.base import Api, Reply, Request
from torchport.server.api.openapi import metrics_description
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.errors import ResourceNotFound
from torchport.server.http.message import header_lines
from torchport.server.models.statistics import RequestCounts
from torchport.server.settings.settings import ServerSettings

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_UNTYPED = re.compile(r"^(# TYPE \S+) untyped$", re.MULTILINE)
_HELP_OR_TYPE = re.compile(r"# (?:HELP|TYPE) (?P<name>[A-Za-z_:][A-Za-z0-9_:]*)")


class MetricsApi(Api):
    """Answers Prometheus' scrapes."""

    key_kind = KeyKind.INFERENCE

    def __init__(
        self, settings: ServerSettings, access: Access, counts: RequestCounts, *collectors: Collector
    ) -> None:
        super().__init__(settings, access, counts, metrics_description())
        self._registry = CollectorRegistry(auto_describe=False)
        for collector in collectors:
            self._registry.register(collector)

    def answer(self, request: Request) -> Reply:
        segments = request.segments
        if segments[0] == "metrics" and self.settings.enable_metrics_api:
            request.allow("GET")
            query = parse_qs(request.http.query.decode("latin-1"))
            text = generate_latest(self._registry).decode()
            # Counters that do not end in `_total`, as TorchServe's: the library has no name for those.
            text = _UNTYPED.sub(r"\1 counter", text)
            names = query.get("name[]", [])
            body = (_only(text, set(names)) if names else text).encode()
            return Reply(200, body, header_lines([(b"content-type", CONTENT_TYPE)]))
        described = self.describe(request)
        if described is not None:
            return described
        raise ResourceNotFound


def _only(text: str, names: set[str]) -> str:
    """The lines of the families and samples with these names."""
    kept, family = [], ""
    for line in text.splitlines(keepends=True):
        comment = _HELP_OR_TYPE.match(line)
        if comment:
            family = comment["name"]
        name = family if comment else re.split(r"[{ ]", line, maxsplit=1)[0]
        if family in names or name in names:
            kept.append(line)
    return "".join(kept)
