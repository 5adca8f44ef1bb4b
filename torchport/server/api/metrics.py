"""The metrics API: `GET /metrics` in Prometheus' text format; `?name[]=` selects families."""

from __future__ import annotations

from urllib.parse import parse_qs

from prometheus_client.registry import Collector

from torchport.server.api.base import Api, Reply, Request
from torchport.server.api.exposition import text_of
from torchport.server.api.openapi import metrics_description
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.errors import ResourceNotFound
from torchport.server.http.message import header_lines
from torchport.server.models.statistics import RequestCounts
from torchport.server.settings.settings import ServerSettings

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class MetricsApi(Api):
    """Answers Prometheus' scrapes."""

    key_kind = KeyKind.INFERENCE

    def __init__(
        self, settings: ServerSettings, access: Access, counts: RequestCounts, *collectors: Collector
    ) -> None:
        super().__init__(settings, access, counts, metrics_description())
        self._collectors = collectors

    def answer(self, request: Request) -> Reply:
        segments = request.segments
        if segments[0] == "metrics" and self.settings.enable_metrics_api:
            request.allow("GET")
            query = parse_qs(request.http.query.decode("latin-1"))
            families = (family for collector in self._collectors for family in collector.collect())
            body = text_of(families, query.get("name[]", [])).encode()
            return Reply(200, body, header_lines([(b"content-type", CONTENT_TYPE)]))
        described = self.describe(request)
        if described is not None:
            return described
        raise ResourceNotFound
