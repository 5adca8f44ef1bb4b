"""A short chaos run; `python -m tests.chaos --minutes 10` is a long one."""

import pytest

from tests.chaos.run import run

pytestmark = [pytest.mark.server, pytest.mark.slow]

SEED = 14
MINUTES = 0.5


def test_chaos_loses_nothing_and_leaves_nothing_over(tmp_path):
    report = run(minutes=MINUTES, seed=SEED, folder=tmp_path / "chaos")
    print(report)
    assert report.faults == [], str(report)
