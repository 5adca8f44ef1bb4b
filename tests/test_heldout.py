"""What an answer decides, of which two versions of a model may agree."""

import numpy as np
import pytest

from torchport.heldout import decision


@pytest.mark.parametrize(
    ("answer", "decided"),
    [
        ([0.1, 2.0, -1.0], 1),
        ({"7": 0.9, "1": 0.1}, "7"),
        ({"7": 0.9}, "7"),
        ({"label": "good", "probability": 0.7}, {"label": "good"}),
        ({"boxes": [{"box": [1.5, 2.0], "label": "3", "score": 0.5}]}, {"boxes": [{"label": "3"}]}),
        (
            [{"label": "b", "score": 0.6}, {"label": "a", "score": 0.9}, {"label": "c", "score": 0.1}],
            [{"label": "a"}, {"label": "b"}],
        ),
        (3.5, None),
        ([4.25], None),
        (b"picture", None),
        ("bonjour", "bonjour"),
    ],
)
def test_what_an_answer_decides(answer, decided):
    assert decision(answer) == decided


def test_numbers_that_round_apart_are_no_disagreement():
    one, other = np.array([0.5, 1.25]), np.array([0.51, 1.2])
    assert decision(one.tolist()) == decision(other.tolist())
