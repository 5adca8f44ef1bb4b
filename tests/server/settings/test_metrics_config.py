"""TorchServe's `metrics_config`: what handlers find declared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.server.archives import write_archive
from torchport.errors import ServerError
from torchport.server.settings.metrics_config import declared_metrics
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

CONFIG = """
dimensions:
  - &model "ModelName"
  - &level "Level"
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Count, dimensions: [*level]}
model_metrics:
  counter:
    - {name: Seen, unit: count, dimensions: [*model, *level]}
  histogram:
    - {name: Spent, unit: ms, dimensions: [Part, *model]}
"""

HANDLER = """
def handle(data, context):
    if data is None:
        return None
    metrics = context.metrics
    metrics.get_metric("Seen").add_or_update(2, [context.model_name, "Model"])
    metrics.get_metric("Spent", "histogram").add_or_update(7.0, ["front", context.model_name])
    return ["counted"] * len(data)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "metrics.yaml").write_text(CONFIG)
    write_archive(folder / "store", "counts", HANDLER)
    settings = {"metrics_config": str(folder / "metrics.yaml"), "enable_grpc": "false"}
    with start(Store(folder / "store"), folder / "run", settings=settings) as server:
        yield server


@pytest.mark.server
def test_a_handler_finds_what_the_file_declares(server: ServerProcess) -> None:
    answer = requests.post(f"{server.urls['inference']}/predictions/counts", b"x", timeout=30)
    assert (answer.status_code, answer.text) == (200, "counted")
    text = requests.get(f"{server.urls['metrics']}/metrics", timeout=30).text
    assert 'Seen{ModelName="counts",Level="Model",Hostname="' in text
    assert 'Spent_count{Part="front",ModelName="counts",Hostname="' in text
    # TorchServe's own, in its order.
    assert 'Requests2XX{Level="Host",Hostname="' in text
    assert 'ts_inference_requests_total{model_name="counts",model_version="default",hostname="' in text


def test_without_a_file_there_are_torchserves_two() -> None:
    assert [(metric.name, metric.kind) for metric in declared_metrics(None)] == [
        ("HandlerTime", "gauge"),
        ("PredictionTime", "gauge"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "cannot be read"),
        ("- a", "object"),
        ("ts_metrics: {}", "model_metrics"),
        ("model_metrics: {}", "length"),
        ("model_metrics: {timer: []}", "timer"),
        ("model_metrics: {gauge: [{name: a, unit: ms}]}", "dimensions"),
        ("model_metrics: {gauge: [{name: 3, unit: ms, dimensions: []}]}", "str"),
    ],
)
def test_a_file_that_declares_nothing_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "metrics.yaml"
    path.write_text(text)
    with pytest.raises(ServerError, match=f"metrics_config=.*{reason}"):
        declared_metrics(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="No such file"):
        declared_metrics(tmp_path / "none.yaml")
