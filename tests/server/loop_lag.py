"""How long a server's event loop was held up, by its own watchdog.

    assert not holds_the_loop(server.urls["metrics"], lambda: ask(server, body))

The watchdog counts a delay no longer than the CPU time that the server used in it: other processes on a
busy machine do not make it longer. What delays by chance all the same does so in one attempt, not in three.
"""

from __future__ import annotations

from collections.abc import Callable

import requests
from prometheus_client.parser import text_string_to_metric_families

LIMIT_S = 0.05
ATTEMPTS = 3


def long_delays(metrics_url: str, limit_s: float = LIMIT_S) -> float:
    """Number of delays over the limit, which is one of the histogram's bounds."""
    text = requests.get(f"{metrics_url}/metrics", timeout=60).text
    # Of one scrape: the watchdog counts on.
    found = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    name = "torchport_loop_own_lag_seconds"
    return found[f"{name}_count", None] - found[f"{name}_bucket", str(limit_s)]


def holds_the_loop(metrics_url: str, action: Callable[[], object], limit_s: float = LIMIT_S) -> bool:
    """Whether the event loop is held up longer than the limit each time that this is done."""
    for _ in range(ATTEMPTS):
        before = long_delays(metrics_url, limit_s)
        action()
        if long_delays(metrics_url, limit_s) == before:
            return False
    return True
