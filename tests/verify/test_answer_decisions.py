"""What an answer decides, and when two decide alike."""

import io

import numpy as np
import pytest
from PIL import Image

from torchport.verify.answers.decisions import decided, differing, matched, score_difference
from torchport_runtime import write_arrays

DRAW = np.random.default_rng(0)


def box(x, y, size, label="7", score=0.9):
    return {"box": [x, y, x + size, y + size], "label": label, "score": score}


def picture(grey):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), grey, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def said(one, other, decides=""):
    return differing(decided(one, decides), decided(other, decides))


@pytest.mark.parametrize(
    ("answer", "decides", "kind"),
    [
        ({"boxes": [box(0.0, 0.0, 10.0)], "width": 20}, "", "boxes"),
        ({"boxes": [], "width": 20}, "", "boxes"),
        ([box(0.0, 0.0, 10.0)], "", "boxes"),
        ({"translation": "Ouvrir", "truncated": False}, "", "sequence"),
        ("Ouvrir", "", "sequence"),
        ([3, 5, 8], "", "sequence"),
        ({"label": "good", "probability": 0.7}, "", "label"),
        ({"7": 0.9, "1": 0.1}, "", "label"),
        ({"mean": 1.5, "std": 2.0}, "", "number"),
        ({"mean": 0.5, "std": 0.25}, "number", "number"),
        ([0.1, 2.0, -1.0], "label", "label"),
        ([0.1, 2.0, -1.0], "", "number"),
        ([[0.1, 2.0], [0.5, 1.0]], "", "number"),
        (3.5, "", "number"),
        (picture(0), "", "picture"),
        ({"found": None}, "", "json"),
        ({}, "", "json"),
    ],
)
def test_the_kind_of_an_answer(answer, decides, kind):
    assert decided(answer, decides).kind == kind


def test_boxes_are_the_same_that_overlap_by_nine_tenths_whatever_their_order_and_scores():
    one, two = box(0.0, 0.0, 100.0), box(200.0, 200.0, 50.0, "3", 0.5)
    moved = box(1.0, 1.0, 100.0, score=0.8)  # 99 * 99 of 2 * 100 * 100 - 99 * 99: 0.961.
    assert said({"boxes": [two, moved]}, {"boxes": [one, two]}) == ""
    assert score_difference(decided([two, moved]), decided([one, two])) == pytest.approx(0.1)
    far = box(5.0, 5.0, 100.0)  # 95 * 95 of 2 * 100 * 100 - 95 * 95: 0.823.
    problem = said({"boxes": [far, two]}, {"boxes": [one, two]})
    assert "boxes: 1 of 2 boxes are among the trained model's 2" in problem
    assert "without '7' at [0.0, 0.0, 100.0, 100.0]" in problem


def test_a_box_of_another_label_one_too_many_and_one_lost_are_named():
    one = box(0.0, 0.0, 100.0)
    assert "with '3'" in said([box(0.0, 0.0, 100.0, "3")], [one])
    assert "1 of 2 boxes" in said([one, box(300.0, 0.0, 9.0)], [one])
    assert "0 of 0 boxes" in said({"boxes": []}, {"boxes": [one]})


def test_each_box_has_one_partner_and_as_many_have_one_as_can():
    # The first box overlaps with both, the second with the first only: taking what comes first would leave
    # the second alone.
    boxes = [box(0.0, 0.0, 100.0), box(-2.0, 0.0, 100.0)]
    others = [box(-1.0, 0.0, 100.0), box(3.0, 0.0, 100.0)]
    assert matched(boxes, others) == [(0, 1), (1, 0)]
    assert matched([boxes[0], boxes[0]], [boxes[0]]) == [(0, 0)]
    assert matched([], others) == []


def test_boxes_without_an_area_are_the_same_where_they_are_equal():
    assert said([box(5.0, 5.0, 0.0)], [box(5.0, 5.0, 0.0)]) == ""
    assert said([box(5.0, 5.0, 0.0)], [box(6.0, 5.0, 0.0)]) != ""


def test_sequences_are_equal_or_differ_from_a_place_on():
    assert said({"tokens": [3, 5, 8]}, {"tokens": [3, 5, 8]}) == ""
    assert "from token 1 on" in said({"tokens": [3, 6, 8]}, {"tokens": [3, 5, 8]})
    assert "from token 2 on" in said([3, 5], [3, 5, 8])
    assert "translation: 'Ouvre'" in said({"translation": "Ouvre"}, {"translation": "Ouvrir"})


def test_labels_go_by_name_and_their_scores_stand_apart():
    one, other = {"label": "a", "probability": 0.5004}, {"label": "a", "probability": 0.5}
    assert said(one, other) == ""
    assert score_difference(decided(one), decided(other)) == pytest.approx(0.0004)
    assert said({"label": "b", "probability": 0.5}, other) == "label: 'b', the trained model says 'a'"
    assert said({"7": 0.6, "1": 0.4}, {"7": 0.7, "2": 0.2}) == ""
    assert said({"1": 0.6, "7": 0.4}, {"7": 0.6, "1": 0.4}) != ""


def test_numbers_may_be_off_by_rounding_or_by_what_eager_is_off():
    assert said([100.0, 0.001], [100.005, 0.0]) == ""
    assert "the trained model says 100" in said([100.0, 0.0], [100.05, 0.0])
    one, truth = decided([1.01]), decided([1.0])
    assert differing(one, truth, decided([1.002])) == ""
    assert differing(one, truth, decided([1.0001])) != ""
    assert said([float("nan")], [1.0]) != ""
    assert said([float("nan"), 1.0], [float("nan"), 1.0]) == ""
    assert said([1.0], [1.0, 2.0]) != ""


def test_answers_of_another_shape_differ():
    assert "it has" in said({"label": "a"}, {"translation": "a"})
    assert said([{"label": "a"}, {"label": "b"}], [{"label": "a"}]) != ""
    assert said({"found": None}, {"found": {}}) != ""


def test_files_of_arrays_are_numbers_whatever_their_precision():
    values = DRAW.standard_normal((3, 4))
    one = write_arrays({"y": values.astype(np.float32), "n": np.array([1, 2])}, "npz")
    truth = write_arrays({"y": values, "n": np.array([1, 2])}, "npz")
    assert [(part.path, part.kind) for part in decided(truth).parts] == [("y", "number"), ("n", "sequence")]
    assert said(one, truth) == ""
    assert "the trained model says" in said(
        write_arrays({"y": values + 0.01, "n": np.array([1, 2])}, "npz"), truth
    )
    assert "from token 1 on" in said(write_arrays({"y": values, "n": np.array([1, 3])}, "npz"), truth)
    assert decided(write_arrays({"y": values}, "npy")).kind == "number"


def test_pictures_within_a_grey_level():
    assert said(picture(100), picture(101)) == ""
    assert said(picture(100), picture(102)) != ""
