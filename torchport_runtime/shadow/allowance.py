"""How much time a shadow may take: a share of what passes.

allowance = CpuBudget(0.01)
allowance.spend(0.2)
allowance.wait_s()                   # 15.0: what is above AT_ONCE_S has to come in again first
"""

from __future__ import annotations

import time

AT_ONCE_S = 0.05
"""Time that may be taken at once, where none was for a while."""


class CpuBudget:
    """Time that may be taken: `share` of what passes. What takes long because others keep the processors is
    charged for all of that, and comes less often when they do."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._left, self._at = AT_ONCE_S, time.monotonic()

    def wait_s(self) -> float:
        """Seconds until more may be taken."""
        now = time.monotonic()
        self._left = min(AT_ONCE_S, self._left + (now - self._at) * self._share)
        self._at = now
        return max(0.0, -self._left / self._share)

    def spend(self, seconds: float) -> None:
        """Count what was taken; the next may have to wait for it."""
        self._left -= seconds
