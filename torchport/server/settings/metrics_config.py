"""Reads TorchServe's `metrics_config`: the metrics that handlers find declared.

declared_metrics(Path("metrics.yaml"))       # [DeclaredMetric("HandlerTime", "gauge", "ms", ["Level"])]

Only its `model_metrics` are of interest: the server's own metrics are always there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml

from torchport.errors import ServerError
from torchport.server.wire import DeclaredMetric

ALWAYS = [
    DeclaredMetric("HandlerTime", "gauge", "ms", ["ModelName", "Level"]),
    DeclaredMetric("PredictionTime", "gauge", "ms", ["ModelName", "Level"]),
]
"""What handlers find without a `metrics_config`, as on TorchServe."""


class _Metric(msgspec.Struct):
    name: str
    unit: str
    dimensions: list[str]


class _File(msgspec.Struct):
    model_metrics: Annotated[
        dict[Literal["counter", "gauge", "histogram"], list[_Metric]], msgspec.Meta(min_length=1)
    ]


def declared_metrics(path: Path | None) -> list[DeclaredMetric]:
    """The metrics that a file declares; `ALWAYS` without one.

    Raises:
        ServerError: the file cannot be read, or declares no metrics.
    """
    if path is None:
        return ALWAYS
    try:
        found = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), _File)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as err:
        raise ServerError(
            f"metrics_config={path} cannot be read: {err}. A YAML file is expected with model_metrics: lists "
            "under counter, gauge and histogram, of which each entry has name, unit and dimensions"
        ) from err
    return [
        DeclaredMetric(metric.name, kind, metric.unit, metric.dimensions)
        for kind, metrics in found.model_metrics.items()
        for metric in metrics
    ]
