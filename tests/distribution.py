"""Which process runs which tests, where several share them: `pytest -n 2`.

A module stays whole, and so does a folder below `tests/server`: its servers start once. Longest first, so
that all processes end at about the same time.
"""

from __future__ import annotations

from xdist.scheduler.loadscope import LoadScopeScheduling
from xdist.workermanage import WorkerController

SECONDS = {
    "tests/serving/test_zoo.py": 400,
    "tests/test_training.py": 250,
    "tests/serving/test_torchserve.py": 200,
    "tests/test_cli.py": 110,
    "tests/defects/test_correct.py": 100,
    "tests/serving/test_conformance.py": 90,
    "tests/server/test_under_load.py": 80,
    "tests/server/test_shadow.py": 70,
    "tests/test_wrapped.py": 65,
    "tests/test_shadow.py": 60,
    "tests/test_interruptions.py": 60,
    "tests/server/http_connection": 55,
    "tests/test_quantization.py": 50,
    "tests/serving/test_handlers_of_torchserve.py": 50,
    "tests/serving/test_shadow_on_torchserve.py": 45,
    "tests/test_tuning.py": 45,
    "tests/test_archive.py": 40,
    "tests/server/test_serve.py": 40,
    "tests/server/grpc_services": 35,
    "tests/test_aotinductor.py": 35,
}
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
