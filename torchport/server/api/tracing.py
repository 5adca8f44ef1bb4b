"""Spans of predictions for OpenTelemetry.

Tracing needs `opentelemetry=true` and `pip install 'torchport[otel]'`. Each prediction has a span with the
time that it waited, a child of the client's span by `traceparent`. OpenTelemetry's own variables say where
spans are sent: `OTEL_TRACES_EXPORTER` (otlp, console or none), `OTEL_EXPORTER_OTLP_ENDPOINT`,
`OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`.
"""

from __future__ import annotations

import os
from typing import Any

from torchport.errors import ServerError
from torchport.server.api.base import Request
from torchport.server.dispatch.job import Job

_CARRIED = (b"traceparent", b"tracestate")


class Tracing:
    """Makes the spans of one server.

    Raises:
        ServerError: OpenTelemetry is missing, or the exporter is unknown.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry.propagate import extract
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.trace import SpanKind
        except ImportError as err:
            raise ServerError("opentelemetry=true needs it: pip install 'torchport[otel]'") from err
        name = os.environ.get("OTEL_SERVICE_NAME", "torchport")
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        for processor in _processors():
            self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("torchport.server")
        self._extract, self._kind = extract, SpanKind.SERVER

    def begin(self, request: Request, model: str, version: str) -> Any:
        """Start the span of a request to a model."""
        carrier = {
            name.decode(): value.decode("latin-1")
            for name in _CARRIED
            if (value := request.http.by_name.get(name)) is not None
        }
        attributes = {
            "http.request.method": request.method,
            "url.path": request.http.path.decode("latin-1"),
            "torchport.model": model,
            "torchport.version": version,
            "torchport.request_id": request.id,
        }
        parent = self._extract(carrier)
        return self._tracer.start_span(
            f"predict {model}", context=parent, kind=self._kind, attributes=attributes
        )

    def end(self, span: Any, job: Job, status: int) -> None:
        """End a span with the answer's status and queue time."""
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("http.response.status_code", status)
        span.set_attribute("torchport.queue_seconds", max(0.0, job.started - job.enqueued))
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def close(self) -> None:
        """Send the spans that have not been sent."""
        self._provider.shutdown()


def _processors() -> list[Any]:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    if exporter == "none":
        return []
    if exporter == "console":
        return [SimpleSpanProcessor(ConsoleSpanExporter())]
    if exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return [BatchSpanProcessor(OTLPSpanExporter())]
    raise ServerError(f"OTEL_TRACES_EXPORTER={exporter!r}: otlp, console or none is expected")
