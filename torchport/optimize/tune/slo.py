"""A service-level objective: maximum latencies, minimum throughput.

    slo = Slo.parse(["p99=50ms"])
    slo.met(measured)                    # whether a measured load is within it
    slo.worth(measured)                  # answers a second: the more, the better

If only a throughput is required, the lowest latency at that throughput is worth most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torchport.errors import TuningRequestError

PERCENTILES = ("p50", "p95", "p99")
_NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,12})?)"
"""A number whose few digits keep it finite, and not 0 in another unit."""
_LATENCY = re.compile(rf"(p[0-9]+)\s*<?=\s*{_NUMBER}\s*(us|ms|s)")
_THROUGHPUT = re.compile(rf"throughput\s*>?=\s*{_NUMBER}\s*(?:/s)?")
_DURATION = re.compile(rf"{_NUMBER}\s*(s|m|h)?")
_IN_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_IN_S = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class Figures(Protocol):
    """Figures measured under one load.

    They are answers a second, latencies in milliseconds, and the number of requests that failed.
    """

    @property
    def per_second(self) -> float: ...
    @property
    def latency_ms(self) -> Mapping[str, float]: ...
    @property
    def errors(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Slo:
    """A service-level objective.

    `latency_ms` has the maximum latency in milliseconds by percentile, one of `PERCENTILES`.
    `per_second` is the minimum throughput in answers a second, 0 for any.
    """

    latency_ms: Mapping[str, float] = field(default_factory=dict)
    per_second: float = 0.0

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Slo:
        """Parse `p99=50ms`, `p50=800us`, `throughput>=100/s`.

        Several in one text are separated by commas.

        Raises:
            TuningRequestError: something else, or one thing said twice.
        """
        latency: dict[str, float] = {}
        throughput: list[float] = []
        for text in [part.strip() for given in texts for part in given.split(",")]:
            found = _LATENCY.fullmatch(text)
            least = _THROUGHPUT.fullmatch(text)
            if found and found[1] in PERCENTILES and found[1] not in latency and float(found[2]) > 0:
                latency[found[1]] = float(found[2]) * _IN_MS[found[3]]
            elif least and not throughput and float(least[1]) > 0:
                throughput.append(float(least[1]))
            else:
                raise TuningRequestError(
                    f"--slo {text!r}: a latency such as p99=50ms ({', '.join(PERCENTILES)}; us, ms, s), or a "
                    "throughput such as throughput>=100/s, is expected, each once"
                )
        return cls(latency_ms=latency, per_second=sum(throughput))

    @property
    def is_about_latency(self) -> bool:
        """Whether only a throughput is required.

        The latency is then what can be improved.
        """
        return bool(self.per_second) and not self.latency_ms

    def met(self, measured: Figures) -> bool:
        """Whether nothing failed, and every latency and the throughput are within it."""
        return self.miss(measured) <= 1

    def miss(self, measured: Figures) -> float:
        """The largest ratio of a figure to its limit.

        It is 1 or less if the objective is met, and infinite if requests fail.
        """
        if measured.errors or not measured.per_second:
            return float("inf")
        shares = [measured.latency_ms[name] / most for name, most in self.latency_ms.items()]
        return max([*shares, self.per_second / measured.per_second])

    def worth(self, measured: Figures) -> float:
        """How good a load is that meets the objective; larger is better.

        The ratio of two is how many times as good one is.
        """
        if self.is_about_latency:
            return 1000 / max(measured.latency_ms["p99"], 1e-6)
        return measured.per_second

    def __str__(self) -> str:
        parts = [f"{name} <= {most:g} ms" for name, most in sorted(self.latency_ms.items())]
        parts += [f"throughput >= {self.per_second:g}/s"] if self.per_second else []
        return ", ".join(parts) or "none: the most throughput"


def parse_duration(text: str) -> float:
    """Parse `90`, `90s`, `5m` or `1h` to seconds.

    Raises:
        TuningRequestError: something else, or nothing.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise TuningRequestError(f"--budget {text!r}: a time such as 90s or 5m is expected")
    return float(found[1]) * _IN_S[found[2]]
