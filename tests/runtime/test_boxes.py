"""Letterbox, decoding and suppression of overlaps, held against torchvision's."""

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import batched_nms, box_iou

from torchport_runtime.boxes import BoxDecoder, Letterbox, Window, iou, suppress

SIZE, STRIDES = (64, 96), (8, 16)
POINTS = 8 * 12 + 4 * 6
LETTERBOX = Letterbox(size=SIZE, fill=100)
SIDES = st.integers(1, 3000)


def random_boxes(count, seed=0, extent=100.0):
    corners = np.random.default_rng(seed).uniform(0, extent, (count, 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


@given(SIDES, SIDES)
def test_a_picture_of_any_shape_fits_and_touches_two_edges(width, height):
    window = LETTERBOX.window((width, height))
    assert 1 <= window.width <= 96
    assert 1 <= window.height <= 64
    assert window.width == 96 or window.height == 64
    assert 0 <= window.left <= 96 - window.width
    assert 0 <= window.top <= 64 - window.height
    # The aspect is kept to half a pixel of rounding, or to the one pixel that a side has at least.
    scale = min(96 / width, 64 / height)
    assert abs(window.width - width * scale) <= 0.5 or window.width == 1
    assert abs(window.height - height * scale) <= 0.5 or window.height == 1


@given(SIDES, SIDES, st.integers(0, 99))
def test_boxes_come_back_from_the_letterbox(width, height, seed):
    boxes = random_boxes(5, seed, extent=1.0) * [width, height, width, height]
    placed = LETTERBOX.place(boxes, (width, height))
    np.testing.assert_allclose(
        LETTERBOX.restore(placed, (width, height)), boxes, atol=1e-9 * (width + height)
    )


def test_the_padding_is_filled_and_the_picture_centred():
    square = np.asarray(LETTERBOX.fit(Image.new("L", (10, 10), 255)))
    assert square.shape == SIZE
    assert (square[:, 16:80] == 255).all()
    assert (square[:, :16] == 100).all()
    assert (square[:, 80:] == 100).all()
    assert LETTERBOX.fit(Image.new("RGB", (5000, 1))).getpixel((0, 0)) == (100, 100, 100)


def test_boxes_are_clipped_to_the_picture():
    restored = LETTERBOX.restore(np.array([[-50.0, -50.0, 500.0, 500.0]]), (20, 10))
    assert restored.tolist() == [[0, 0, 20, 10]]


@pytest.mark.parametrize("wrong", [{"size": (0, 8)}, {"size": (8,)}, {"size": (8, 8), "fill": 256}])
def test_a_letterbox_is_checked_when_made(wrong):
    with pytest.raises(ValueError, match="expected"):
        Letterbox(**wrong)


def test_iou_is_torchvisions():
    boxes, others = random_boxes(40, 1), random_boxes(30, 2)
    expected = box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
    np.testing.assert_allclose(iou(boxes, others), expected, atol=1e-12)
    assert iou(np.zeros((1, 4)), np.zeros((1, 4))) == 0


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_torchvisions(threshold, seed):
    boxes, classes = random_boxes(200, seed), np.random.default_rng(seed).integers(0, 3, 200)
    scores = torch.linspace(1, 0, 200, dtype=torch.float64)
    expected = batched_nms(torch.from_numpy(boxes), scores, torch.from_numpy(classes), threshold)
    assert suppress(boxes, classes, threshold).tolist() == expected.tolist()


def test_nothing_is_suppressed_of_nothing():
    assert suppress(np.zeros((0, 4)), np.zeros(0, np.int64), 0.5).tolist() == []


def dense(seed=0, points=POINTS, classes=3):
    draw = np.random.default_rng(seed)
    logits = draw.normal(-1, 2, (points, classes)).astype(np.float32)
    distances = draw.uniform(0, 4, (points, 4)).astype(np.float32)
    return logits, distances, draw.normal(0, 2, (points, 1)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_decoding_is_that_of_torchvisions_fcos(seed):
    class Nothing(torch.nn.Module):
        out_channels = 32

    anchors = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * 2)
    fcos = FCOS(Nothing(), 3, anchor_generator=anchors, score_thresh=0.3, nms_thresh=0.5)
    maps = [torch.zeros(1, 1, 64 // s, 96 // s) for s in STRIDES]
    images = type("Images", (), {"tensors": torch.zeros(1, 1, *SIZE), "image_sizes": [SIZE]})
    (placed,) = anchors(images, maps)
    outputs = dense(seed)
    names, counts = ("cls_logits", "bbox_regression", "bbox_ctrness"), [96, 24]
    split = {
        name: list(torch.from_numpy(array)[None].split(counts, dim=1))
        for name, array in zip(names, outputs, strict=True)
    }
    (expected,) = fcos.postprocess_detections(split, [list(placed.split(counts))], [SIZE])
    found = BoxDecoder(size=SIZE, strides=STRIDES)(*outputs)
    assert len(found.boxes) > 20
    np.testing.assert_array_equal(found.classes, expected["labels"])
    np.testing.assert_allclose(found.scores, expected["scores"], atol=1e-6)  # Theirs are float32.
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=1e-4)


def one_hot_point(index, distances, classes=3, points=POINTS):
    """Outputs in which one point alone has something to say."""
    logits = np.full((points, classes), -50.0, np.float32)
    logits[index, 1] = 50
    sides = np.zeros((points, 4), np.float32)
    sides[index] = distances
    return logits, sides


def test_offset_and_unit_say_where_a_box_lies():
    outputs = one_hot_point(13, (1, 0.5, 2, 1))  # Row 1, column 1 of stride 8.
    at_corners = BoxDecoder(size=SIZE, strides=STRIDES)
    assert at_corners(*outputs).boxes.tolist() == [[0, 4, 24, 16]]
    in_pixels = BoxDecoder(size=SIZE, strides=STRIDES, offset=0.5, unit="pixel")
    assert in_pixels(*outputs).boxes.tolist() == [[11, 11.5, 14, 13]]


def test_score_is_the_root_of_a_product_or_the_product():
    logits, sides = one_hot_point(13, (1, 1, 1, 1))
    centerness = np.full((POINTS, 1), -np.log(3), np.float32)  # A probability of a quarter.
    root = BoxDecoder(size=SIZE, strides=STRIDES)(logits, sides, centerness)
    product = BoxDecoder(size=SIZE, strides=STRIDES, score="product", min_score=0.1)(
        logits, sides, centerness
    )
    np.testing.assert_allclose([root.scores[0], product.scores[0]], [0.5, 0.25], rtol=1e-6)


def test_boxes_outside_of_the_picture_are_dropped():
    outputs = one_hot_point(13, (0.1, 0.1, 0.1, 0.1))
    decoder = BoxDecoder(size=SIZE, strides=STRIDES)
    assert len(decoder(*outputs).boxes) == 1
    assert len(decoder(*outputs, window=Window(20, 0, 56, 64)).boxes) == 0


def test_the_same_points_at_sizes_that_strides_do_not_divide():
    points = BoxDecoder(size=(20, 33), strides=(16,)).points()
    assert points.tolist() == [[x, y, 16] for y in (0, 16) for x in (0, 16, 32)]


def test_extremes_and_ties_are_ordered_and_quick():
    decoder = BoxDecoder(size=(512, 512), strides=(4,), min_score=0)
    points = len(decoder.points())
    logits = np.full((points, 20), 1e30, np.float32)  # 327,680 candidates, all of them certain.
    started = time.process_time()
    found = decoder(logits, np.full((points, 4), 1e30, np.float32))
    # Of the processor, whatever else it does. A tenth of it here; a loop in Python takes minutes.
    assert time.process_time() - started < 5
    assert found.boxes[0].tolist() == [0, 0, 512, 512]
    assert np.isfinite(found.boxes).all()
    assert (found.scores == 1).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"strides": ()},
        {"strides": (0,)},
        {"unit": "metre"},
        {"score": "sum"},
        {"min_score": 1.5},
        {"nms_iou": -1},
        {"max_boxes": 0},
        {"max_boxes": 500},
    ],
)
def test_a_decoder_is_checked_when_made(wrong):
    with pytest.raises(ValueError, match="expected|at least"):
        BoxDecoder(**{"size": SIZE, "strides": STRIDES, **wrong})


def test_a_decoder_travels_as_json():
    decoder = BoxDecoder(size=SIZE, strides=STRIDES, offset=0.5)
    assert BoxDecoder.from_json(json.loads(json.dumps(decoder.to_json()))) == decoder
