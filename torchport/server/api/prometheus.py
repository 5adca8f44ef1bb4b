"""The server's metrics for Prometheus: TorchServe's names and labels, and `torchport_*`.

Nothing is computed while requests are served: plain counters are read when Prometheus scrapes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from torchport.server.api.handler_metrics import HandlerMetrics, untotalled
from torchport.server.models.registry import Registry
from torchport.server.models.statistics import RequestCounts
from torchport.server.models.version import ModelVersion
from torchport.server.wire import MetricValue


class ServerCollector(Collector):
    """Collects all metrics."""

    def __init__(self, registry: Registry, counts: RequestCounts, *, system_metrics: bool) -> None:
        self._registry, self._counts, self._system = registry, counts, system_metrics
        self._host = socket.gethostname()
        self._started = time.time()
        names = {family.name for family in self._built_in()}
        self._handlers = HandlerMetrics(self._host, taken=names, registered=registry.models)

    def add_samples(self, version: ModelVersion, samples: list[MetricValue]) -> None:
        """Add the values that a handler counted and timed."""
        self._handlers.add(version.model.name, samples)

    def collect(self) -> Iterator[Any]:
        yield from self._built_in()
        yield from self._handlers.collect()

    def _built_in(self) -> Iterator[Any]:
        yield from self._answers()
        yield from self._routes()
        yield from self._versions()
        yield from self._workers()
        if self._system:
            yield from self._machine()

    def _answers(self) -> Iterator[Any]:
        for name, value in (
            ("Requests2XX", self._counts.ok),
            ("Requests4XX", self._counts.client_errors),
            ("Requests5XX", self._counts.server_errors),
        ):
            yield _torchserve_counter(name, "Answers by status", [(("Host", self._host), value)])

        waited = GaugeMetricFamily(
            "QueueTime", "Milliseconds that the last prediction waited", labels=("Level", "Hostname")
        )
        waited.add_metric(("Host", self._host), self._last_wait_s() * 1000)
        yield waited

    def _last_wait_s(self) -> float:
        """Seconds that the last answered request waited for a worker; 0 before the first."""
        routes = [route for found in self._registry.routes.values() for route in found.values()]
        last = max(routes, key=lambda route: route.answered_at, default=None)
        return 0.0 if last is None else last.last_wait_s

    def _routes(self) -> Iterator[Any]:
        """TorchServe's three metrics, by model and by the version that the request named."""
        found = [
            ((name, version, self._host), route)
            for name, routes in self._registry.routes.items()
            for version, route in routes.items()
        ]
        labels = ("model_name", "model_version", "hostname")
        for metric, attribute in (
            ("ts_inference_requests_total", "requests"),
            ("ts_inference_latency_microseconds", "inference_us"),
            ("ts_queue_latency_microseconds", "queue_us"),
        ):
            values = [(key, float(getattr(route, attribute))) for key, route in found]
            yield _torchserve_counter(metric, "As TorchServe counts it", values, labels)

    def _versions(self) -> Iterator[Any]:
        counters = {
            name: CounterMetricFamily(f"torchport_{name}", text, labels=("model_name", "model_version"))
            for name, text in (
                ("completed_requests", "Requests that a worker answered"),
                ("failed_requests", "Requests that cost a worker its life once too often"),
                ("rejected_requests", "Requests that found the queue full"),
                ("expired_requests", "Requests whose time was up before there was an answer"),
                ("retried_requests", "Requests that were tried again after their worker had died"),
                ("worker_restarts", "Workers that ended without being told to"),
            )
        }
        histograms = {
            name: HistogramMetricFamily(f"torchport_{name}", text, labels=("model_name", "model_version"))
            for name, text in (
                ("queue_seconds", "Time from a request's arrival to its worker"),
                ("inference_seconds", "Time that a batch spent with its worker, by request"),
                ("batch_rows", "Requests in a batch"),
            )
        }
        waiting = GaugeMetricFamily(
            "torchport_queue_length", "Requests that wait", labels=("model_name", "model_version")
        )
        shared = GaugeMetricFamily(
            "torchport_shared_memory_slots",
            "Large bodies in the memory that the version's workers share",
            labels=("model_name", "model_version"),
        )
        for key, kept in sorted(self._registry.statistics.items()):
            counters["completed_requests"].add_metric(key, kept.completed)
            counters["failed_requests"].add_metric(key, kept.failed)
            counters["rejected_requests"].add_metric(key, kept.rejected)
            counters["expired_requests"].add_metric(key, kept.expired)
            counters["retried_requests"].add_metric(key, kept.retried)
            counters["worker_restarts"].add_metric(key, kept.restarts)
            for name, histogram in (
                ("queue_seconds", kept.queue_s),
                ("inference_seconds", kept.inference_s),
                ("batch_rows", kept.batch_rows),
            ):
                histograms[name].add_metric(key, histogram.buckets(), histogram.total)
        for version in self._registry.serving():
            waiting.add_metric((version.model.name, version.model.version), len(version.queue))
            if version.arena is not None:
                shared.add_metric((version.model.name, version.model.version), version.arena.in_use)
        yield from counters.values()
        yield from histograms.values()
        yield waiting
        yield shared

    def _workers(self) -> Iterator[Any]:
        memory = GaugeMetricFamily(
            "torchport_worker_memory_bytes",
            "Resident memory",
            labels=("model_name", "model_version", "worker_id"),
        )
        load = GaugeMetricFamily(
            "WorkerLoadTime", "Milliseconds to load the model", labels=("WorkerName", "Level", "Hostname")
        )
        ready = GaugeMetricFamily(
            "torchport_workers_ready", "Workers ready", labels=("model_name", "model_version")
        )
        for version in self._registry.serving():
            model = version.model
            ready.add_metric((model.name, model.version), len(version.pool.ready))
            for worker in version.pool.workers:
                memory.add_metric((model.name, model.version, worker.id), worker.resident_bytes())
                if worker.loaded:
                    name = f"W-{worker.id}-{model.name}_{model.version}"
                    load.add_metric((name, "Host", self._host), worker.load_seconds * 1000)
        yield memory
        yield load
        yield ready

    def _machine(self) -> Iterator[Any]:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
        for name, value in (
            ("CPUUtilization", psutil.cpu_percent()),
            ("MemoryUsed", memory.used / 2**20),
            ("MemoryAvailable", memory.available / 2**20),
            ("MemoryUtilization", memory.percent),
            ("DiskUsage", disk.used / 2**30),
            ("DiskAvailable", disk.free / 2**30),
            ("DiskUtilization", disk.percent),
        ):
            family = GaugeMetricFamily(name, "Of this machine", labels=("Level", "Hostname"))
            family.add_metric(("Host", self._host), value)
            yield family


def _torchserve_counter(
    name: str,
    text: str,
    values: Sequence[tuple[tuple[str, ...], float]],
    labels: tuple[str, ...] = ("Level", "Hostname"),
) -> Any:
    """A counter under exactly this name: TorchServe adds no `_total`."""
    family = untotalled(name, text)
    for key, value in values:
        family.add_sample(name, dict(zip(labels, key, strict=True)), value)
    return family
