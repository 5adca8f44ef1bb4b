"""Which configuration a tuning measures, and which it chooses."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.serving_machine import DEFAULT, FOUR, INT8, ROUNDS, TWO, Machine, figures, searched, space
from torchport.errors import ServerError
from torchport.optimize.tune.search import BETTER, MIN_ROUNDS, Effort


def test_the_fastest_is_chosen():
    outcome = searched(space(TWO, FOUR), Machine({DEFAULT: 300, TWO: 900, FOUR: 600}))
    assert outcome.chosen == TWO
    assert outcome.speed == pytest.approx(3)


def test_an_slo_leaves_out_what_is_fast_and_late():
    # FOUR answers nobody in less than 100 ms, however few ask.
    class Late(Machine):
        @contextmanager
        def serve(self, configuration):
            with super().serve(configuration) as ask:
                slow = configuration == FOUR
                yield lambda n, s: figures(2000, 100) if slow else ask(n, s)

    machine = Late({DEFAULT: 300, TWO: 350})
    assert searched(space(TWO, FOUR), machine, slo=["p99=50ms"]).chosen == TWO
    assert searched(space(TWO, FOUR), Late({DEFAULT: 300, TWO: 350})).chosen == FOUR


def test_for_a_throughput_alone_the_least_latency_is_chosen():
    class Quick(Machine):
        @contextmanager
        def serve(self, configuration):
            with super().serve(configuration):
                p99 = {DEFAULT: 20.0, TWO: 5.0, FOUR: 8.0}[configuration]
                yield lambda n, s: figures(110 if configuration != TWO else 90, p99)

    outcome = searched(space(TWO, FOUR), Quick({}), slo=["throughput>=100/s"])
    assert outcome.chosen == FOUR
    assert outcome.speed == pytest.approx(20 / 8)


def test_the_default_stays_for_less_than_noise():
    outcome = searched(space(TWO), Machine({DEFAULT: 1000, TWO: 1000 * (BETTER - 0.01)}))
    assert outcome.chosen == DEFAULT
    assert "noise" in outcome.why


def test_the_default_stays_where_it_was_better_in_a_round():
    # The first start is the search's; of the three rounds TWO loses one.
    machine = Machine({DEFAULT: 1000, TWO: 1200}, drift={TWO: (1, 1, 0.8, 1)})
    assert searched(space(TWO), machine).chosen == DEFAULT


def test_the_second_best_is_chosen_where_only_that_is_better_in_every_round():
    drift = {TWO: (1, 1.5, 0.3, 1.5)}
    machine = Machine({DEFAULT: 500, TWO: 1000, FOUR: 800}, drift=drift)
    assert searched(space(TWO, FOUR), machine).chosen == FOUR


def test_one_lucky_run_of_the_search_decides_nothing():
    machine = Machine({DEFAULT: 500, TWO: 400, FOUR: 800}, drift={TWO: (9, 1, 1, 1)})
    assert searched(space(TWO, FOUR), machine).chosen == FOUR


def test_one_lucky_round_of_the_finals_decides_nothing():
    machine = Machine({DEFAULT: 500, TWO: 800, FOUR: 700}, drift={FOUR: (1, 1, 9, 1)})
    outcome = searched(space(TWO, FOUR), machine)
    assert outcome.chosen == TWO
    assert outcome.best_of(FOUR).measured.per_second == pytest.approx(700)


def test_what_is_only_shown_is_measured_as_well_and_not_chosen():
    machine = Machine({DEFAULT: 300, TWO: 400, INT8: 3000})
    given = space(TWO, INT8, choosable={DEFAULT.kind})
    outcome = searched(given, machine)
    assert outcome.chosen == TWO
    assert [len(p.rounds) for p in outcome.of(INT8)] == [3] * len(outcome.of(INT8))
    assert {p.configuration for p in outcome.front()} == {TWO}
    allowed = searched(space(TWO, INT8), Machine({DEFAULT: 300, TWO: 400, INT8: 3000}))
    assert allowed.chosen == INT8


def test_other_batch_sizes_are_tried_of_the_best_shapes_only():
    machine = Machine({DEFAULT: 100, TWO: 400, FOUR: 300, replace(TWO, batch_size=32): 800})
    given = space(TWO, FOUR, batch_sizes=(1, 8, 32))
    outcome = searched(given, machine, effort=Effort(shapes=1))
    assert outcome.chosen == replace(TWO, batch_size=32)
    assert {c for c in machine.started if c.batch_size != 8} == {
        replace(TWO, batch_size=1),
        replace(TWO, batch_size=32),
    }


def test_nothing_within_the_slo_is_nothing_chosen():
    outcome = searched(space(TWO), Machine({DEFAULT: 50, TWO: 80}), slo=["p99=5ms"])
    assert outcome.chosen is None


def test_where_the_default_is_too_late_the_best_that_is_not_is_chosen():
    outcome = searched(space(TWO), Machine({DEFAULT: 10, TWO: 80}), slo=["p99=20ms"])
    assert outcome.chosen == TWO
    assert outcome.speed == 0
    assert "which the default does not give" in outcome.why


def test_what_does_not_start_and_what_fails_is_not_chosen():
    machine = Machine({DEFAULT: 100, TWO: 9000, FOUR: 9000}, broken=[FOUR], errors=[TWO])
    outcome = searched(space(TWO, FOUR), machine)
    assert outcome.chosen == DEFAULT
    assert outcome.failed == {str(FOUR): "not enough memory"}
    assert TWO not in {p.configuration for p in outcome.front()}


def test_a_default_that_does_not_start_is_an_error():
    with pytest.raises(ServerError, match="not enough memory"):
        searched(space(TWO), Machine({}, broken=[DEFAULT]))


def test_the_budget_bounds_the_search_and_says_what_it_left_out():
    shapes = [replace(DEFAULT, threads=1, workers=n) for n in range(2, 200)]
    machine = Machine({})
    outcome = searched(space(*shapes), machine, effort=Effort(), deadline=300)
    assert len(outcome.skipped) > 100
    assert len(outcome.skipped) + len(outcome.measured()) == len(shapes) + 1
    # What is begun when the time is over is ended: a start and its loads.
    assert machine.now < 300 + 2 + 3 * Effort().final_s
    assert outcome.chosen == DEFAULT


def test_the_finals_end_with_the_budget_after_two_rounds_at_least():
    def rounds(deadline):
        machine = Machine({DEFAULT: 300, TWO: 900})
        outcome = searched(space(TWO), machine, effort=Effort(rounds=50), deadline=deadline)
        return {len(p.rounds) for p in outcome.points}, machine.now

    assert rounds(1e6)[0] == {50}
    assert rounds(1)[0] == {2}
    (some,), ended = rounds(100)
    assert 2 < some < 50
    assert ended < 100 + 2 + 3 * Effort().final_s


def test_the_front_is_what_nothing_exceeds_in_both():
    outcome = searched(space(TWO, FOUR), Machine({DEFAULT: 300, TWO: 900, FOUR: 600}))
    front = outcome.front()
    assert len(front) > 1
    for point in front:
        assert not any(
            other.measured.per_second > point.measured.per_second
            and other.measured.latency_ms["p99"] <= point.measured.latency_ms["p99"]
            for other in outcome.points
        )


def test_what_gives_up_precision_meets_the_best_that_does_not():
    # The search saw INT8 first, by luck: in the finals it is the slower one.
    machine = Machine({DEFAULT: 300, TWO: 900, INT8: 880}, drift={INT8: (1.2,)})
    outcome = searched(space(TWO, INT8), machine, effort=replace(ROUNDS, finalists=2))
    assert {p.configuration for p in outcome.points if p.rounds} == {DEFAULT, TWO, INT8}
    assert outcome.chosen == TWO


def test_with_time_for_one_finalist_it_is_the_one_that_keeps_the_precision():
    machine = Machine({DEFAULT: 300, TWO: 900, INT8: 1000})
    finals = MIN_ROUNDS * 2 * (2.0 + 3 * Effort().final_s)
    searching = 3 * (2.0 + 7 * Effort().quick_s)
    outcome = searched(
        space(TWO, INT8), machine, deadline=searching + 1.2 * finals, effort=replace(ROUNDS, search_share=0.9)
    )
    assert {p.configuration for p in outcome.points if p.rounds} == {DEFAULT, TWO}
    assert outcome.chosen == TWO
