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

SECONDS = {
    "tests/targets/test_zoo.py": 460,
    "tests/train/test_training.py": 280,
    "tests/targets/test_torchserve.py": 185,
    "tests/optimize/test_quantization.py": 140,
    "tests/verify/defects/test_correct.py": 100,
    "tests/targets/test_conformance.py": 90,
    "tests/server/test_shadow.py": 80,
    "tests/verify/test_parity.py": 75,
    "tests/targets/test_shadow_on_torchserve.py": 70,
    "tests/optimize/test_tuning.py": 60,
    "tests/server/http": 55,
    "tests/verify/local/test_proving_process.py": 55,
    "tests/export/test_recurrent.py": 55,
    "tests/server/test_under_load.py": 55,
    "tests/road/test_readme.py": 50,
    "tests/runtime/test_shadow.py": 50,
    "tests/package/test_archive.py": 50,
    "tests/server/test_chaos.py": 50,
    "tests/server/test_large_bodies.py": 50,
    "tests/server/grpc": 50,
    "tests/road/test_interruptions.py": 45,
    "tests/cli/test_cli.py": 40,
    "tests/targets/test_handlers_of_torchserve.py": 35,
    "tests/export/test_aotinductor.py": 35,
    "tests/server/test_serve.py": 35,
    "tests/export/test_precisions.py": 35,
    "tests/test_requirements.py": 35,
    "tests/server/test_shutdown.py": 30,
    "tests/export/test_export.py": 25,
    "tests/targets/test_wire.py": 25,
    "tests/verify/test_divergence.py": 25,
}
"""What the longest take on two cores, rounded. Others come after these, those with the most tests first.

`test_training` makes the build of `digits_resnet18`: three minutes of one core. Modules that use it too start
later, and find it made.
"""


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
