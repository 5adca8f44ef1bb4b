"""Reading a server's metrics.

metric(server, "ts_inference_requests_total", model_name="linear")
"""

from __future__ import annotations

import requests
from prometheus_client.parser import text_string_to_metric_families

from torchport.targets.torchport_serve import ServerProcess


def metric(server: ServerProcess, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels, whatever others they have."""
    text = requests.get(f"{server.urls['metrics']}/metrics", timeout=10).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
