"""Of which held-out examples two versions of a model decide alike."""

import pytest

from torchport.answer_decisions import choices, decided
from torchport.heldout import Agreement, Measured


def box(left, label="3", score=0.9):
    return {"box": [left, 0.0, left + 100.0, 100.0], "label": label, "score": score}


def agreement(one, other, decides=""):
    first, second = (Measured({}, [choices(decided(answer, decides))]) for answer in (one, other))
    return first.agreement(second)


@pytest.mark.parametrize(
    ("one", "other", "decides"),
    [
        ([0.1, 2.0, -1.0], [0.3, 1.5, 1.4], "label"),
        ({"7": 0.9, "1": 0.1}, {"7": 0.6, "2": 0.4}, ""),
        ({"label": "good", "probability": 0.7}, {"label": "good", "probability": 0.5}, ""),
        ("bonjour", "bonjour", ""),
        ([box(0.0), box(300.0)], [box(302.0, score=0.6), box(1.0)], ""),
        ([box(0.0), box(300.0, "5", 0.4)], [box(0.0)], ""),
        ([], [], ""),
        ([], [box(0.0, score=0.4)], ""),
    ],
)
def test_answers_that_decide_alike_whatever_their_numbers(one, other, decides):
    assert agreement(one, other, decides) == Agreement(1, 1)


@pytest.mark.parametrize(
    ("one", "other", "decides"),
    [
        ([0.1, 2.0, -1.0], [2.5, 2.0, -1.0], "label"),
        ({"7": 0.9, "1": 0.1}, {"1": 0.6, "7": 0.4}, ""),
        ("bonjour", "bonsoir", ""),
        ([box(0.0)], [box(0.0, "5")], ""),
        ([box(0.0)], [box(40.0)], ""),
        ([box(0.0)], [box(0.0, score=0.4)], ""),
    ],
)
def test_answers_that_decide_otherwise(one, other, decides):
    assert agreement(one, other, decides) == Agreement(1, 0)


@pytest.mark.parametrize("answer", [3.5, [4.25], b"picture", {"mean": 1.5, "std": 2.0}])
def test_numbers_and_pictures_decide_nothing(answer):
    assert agreement(answer, answer) == Agreement(0, 0)
