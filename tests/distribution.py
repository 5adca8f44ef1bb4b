"""Which process runs which tests, where several share them: `pytest -n 2`.

A module stays whole, and so does a folder below `tests/server` with a conftest of its own: its servers start
once. Longest first, so that all processes end at about the same time.
"""

from __future__ import annotations

from pathlib import Path

from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import WorkerController

ROOT = Path(__file__).parent.parent
SERVER = Path("tests/server")

SECONDS: dict[str, int] = {}
"""What the longest take on two cores, rounded. Others come after these, those with the most tests first."""


class LongestFirst(LoadScopeScheduling):
    """Hands out whole modules, longest first."""

    def _split_scope(self, nodeid: str) -> str:
        module = Path(nodeid.split("::", 1)[0])
        shared = (
            f
            for f in module.parents
            if f.parent.is_relative_to(SERVER) and (ROOT / f / "conftest.py").exists()
        )
        return next(shared, module).as_posix()

    def _assign_work_unit(self, node: WorkerController) -> None:
        def length(unit: str) -> tuple[int, int]:
            return SECONDS.get(unit, 0), len(self.workqueue[unit])

        self.workqueue.move_to_end(max(self.workqueue, key=length), last=False)
        super()._assign_work_unit(node)
