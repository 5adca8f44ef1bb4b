"""Of which held-out examples two versions of a model decide alike."""

import numpy as np
import pytest

from tests.optimize.signs import SIGNS
from torchport.optimize.quantize.heldout import Agreement, HeldOut, Measured
from torchport.recipe.loading import load_recipe
from torchport.verify.answers.decisions import choices, decided
from torchport_runtime.requests.request import Answer


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


class Echo:
    """Answers with the sign of a picture, or, mixing, of the first picture of its batch."""

    decides = "label"

    def __init__(self, mixes):
        self.mixes = mixes

    def answer(self, requests):
        means = [float(np.mean(request.body[0])) for request in requests]
        return [Answer([-mean, mean]) for mean in (means[:1] * len(means) if self.mixes else means)]


def test_other_batches_show_what_depends_on_batch_mates(write_recipe):
    # More examples than a large batch takes, in two batches whose first pictures have different signs: in one
    # batch of all, half of the answers are right whichever picture comes first.
    path = write_recipe(("pictures(1, 24)", "pictures(1, 46)"), source=SIGNS, name="signs_recipe")
    examples = HeldOut(load_recipe(path), batch_size=4)
    for mixes in (False, True):
        in_order, shuffled = (examples.measure(Echo(mixes), shuffled=s) for s in (False, True))
        assert (in_order.metrics != shuffled.metrics) == mixes
    assert in_order.metrics == {"accuracy": 0.5, "error": 0.5}
    alone = examples.measure(Echo(False))
    assert alone.agreement(examples.measure(Echo(False), shuffled=True)) == Agreement(46, 46)
