"""Which process runs which tests, where several share them: `pytest -n 2`.

A module stays whole, and so does a folder below `tests/server`: its servers start once. Longest first, so
that all processes end at about the same time.
"""

from __future__ import annotations

from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import WorkerController

SECONDS: dict[str, int] = {}
"""What the longest take on two cores, rounded. Others come after these, those with the most tests first."""


class LongestFirst(LoadScopeScheduling):
    """Hands out whole modules, longest first."""

    def _split_scope(self, nodeid: str) -> str:
        return "/".join(nodeid.split("::", 1)[0].split("/")[:3])

    def _assign_work_unit(self, node: WorkerController) -> None:
        def length(unit: str) -> tuple[int, int]:
            return SECONDS.get(unit, 0), len(self.workqueue[unit])

        self.workqueue.move_to_end(max(self.workqueue, key=length), last=False)
        super()._assign_work_unit(node)
