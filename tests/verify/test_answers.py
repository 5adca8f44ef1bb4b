import io

import numpy as np
from PIL import Image

from torchport.verify.answers.equality import same_answer
from torchport_runtime import write_arrays


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_numbers_names_and_texts():
    assert same_answer({"a": [1.0, 2]}, {"a": [1.00001, 2]})
    assert not same_answer({"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0})
    assert not same_answer({"a": 1.0}, {"a": 1.1})
    assert not same_answer([1, 2], [1])
    assert not same_answer("one", "two")
    assert same_answer([100.2], [100.9], rtol=0, atol=1)


def test_pictures_within_a_grey_level():
    pixels = np.full((4, 4), 100)
    assert same_answer(png(pixels), png(pixels + 1))
    assert not same_answer(png(pixels), png(pixels + 2))
    assert not same_answer(png(pixels), png(pixels[:2]))
    assert not same_answer(png(pixels), b"no picture")


def test_arrays():
    one, other = ({"y": np.array([1.0, np.nan], np.float32)} for _ in range(2))
    other["y"] = other["y"] * np.float32(1.00001)
    for kind in ("npy", "npz"):
        assert same_answer(write_arrays(one, kind), write_arrays(other, kind))
        assert not same_answer(write_arrays(one, kind), write_arrays({"y": one["y"] * 2}, kind))
    assert not same_answer(write_arrays(one, "npz"), write_arrays({"z": one["y"]}, "npz"))
