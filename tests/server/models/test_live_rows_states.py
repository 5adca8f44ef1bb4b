"""Live rows in any interleaving with deaths, hangs, leaving clients and scaling: as `test_life_cycle_states`,
with one model, which streams."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import initialize

from tests.server.models.test_life_cycle_states import LifeCycle


class Streaming(LifeCycle):
    """One version with two workers is there from the beginning on."""

    register = unregister = set_default = change_what_is_not_there = leave = end_thread = None  # type: ignore

    @initialize()
    def start(self) -> None:
        super().start()
        LifeCycle.register(self, "streaming", "1.0", 2, synchronous=False, at_once=False)
        LifeCycle.end_thread(self, -1)
        self.work_all()


TestStreaming = pytest.mark.filterwarnings("error")(Streaming.TestCase)
TestStreaming.settings = settings(max_examples=25, stateful_step_count=40, deadline=None, database=None)
