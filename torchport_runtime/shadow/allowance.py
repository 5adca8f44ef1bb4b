"""A shadow's CPU budget: a share of the time that passes.

budget = CpuBudget(0.01)
budget.spend(0.2)
budget.wait_s()                      # 15.0: the time above AT_ONCE_S must be saved up again
"""

from __future__ import annotations

import time

AT_ONCE_S = 0.05
"""Maximum seconds that can be saved up and spent at once."""


class CpuBudget:
    """Time that may be spent: `share` of the time that passes.

    Elapsed time is charged, so that a shadow runs less often while others keep the processors busy.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._left, self._at = AT_ONCE_S, time.monotonic()

    def wait_s(self) -> float:
        """Seconds until time may be spent again."""
        now = time.monotonic()
        self._left = min(AT_ONCE_S, self._left + (now - self._at) * self._share)
        self._at = now
        return max(0.0, -self._left / self._share)

    def spend(self, seconds: float) -> None:
        """Charge seconds to the budget."""
        self._left -= seconds
