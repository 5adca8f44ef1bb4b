"""The `tensor` handler and numpy's files, good ones and hostile ones."""

import io
import zipfile

import numpy as np
import pytest

from tests.runtime.test_handler import Context, handler
from torchport_runtime import BadRequest, Signature, TensorSpec, read_arrays, write_arrays

TWO = Signature(
    inputs={"a": TensorSpec("int64", ("batch", "time")), "b": TensorSpec("float32", ("batch", 2))},
    outputs={"y": TensorSpec("float32", ("batch", 1)), "z": TensorSpec("int64", ("batch",))},
    dims={"time": (1, 9)},
)
A, B = np.arange(6).reshape(2, 3), np.ones((2, 2), np.float32)


def test_npz_there_and_back():
    content = write_arrays({"a": A, "b": B}, "npz")
    assert content == write_arrays({"a": A, "b": B}, "npz")
    read = read_arrays(content, TWO)
    np.testing.assert_array_equal(read["a"], A)
    assert read["b"].dtype == np.float32
    loaded = np.load(io.BytesIO(content))
    assert set(loaded) == {"a", "b"}


def test_orders_and_byte_orders():
    one = handler("tensor", inputs=("batch", 2)).signature
    for array in (np.asfortranarray(B * [1, 2]).astype(np.float32), (B * [1, 2]).astype(">f4")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        read = read_arrays(buffer.getvalue(), one)["x"]
        assert read.dtype == np.dtype("float32")
        np.testing.assert_array_equal(read, B * [1, 2])


def huge_header():
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": (2**40,), "fortran_order": False, "descr": "<f4"})
    return buffer.getvalue()


def pickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def bomb():
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(2**20))
    return buffer.getvalue()


def lying(method):
    """A zip of one large member that says it has 100 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("x.npy", bytes(300 * 2**20))
    content = bytearray(buffer.getvalue())
    central = content.rindex(b"PK\x01\x02")
    content[central + 24 : central + 28] = (100).to_bytes(4, "little")
    return bytes(content)


def header(text):
    raw = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (lying(zipfile.ZIP_BZIP2), 400),
        (lying(zipfile.ZIP_DEFLATED), 400),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}"), 400),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1180591620717411303424)}"), 400),
        (header("{'descr': '|V0', 'fortran_order': False, 'shape': (1,)}"), 400),
        (header("{'descr': ('<i8', (2,)), 'fortran_order': False, 'shape': ()}"), 400),
        (header("[" * 9000), 400),
        (huge_header(), 400),
        (pickled(), 400),
        (bomb(), 413),
        (b"\x93NUMPY", 400),
        (b"\x93NUMPY\x09\x00", 400),
        (write_arrays({"x": B}, "npy")[:-1], 400),
        (write_arrays({"x": B}, "npz")[:-30], 400),
        (b"PK\x03\x04" + bytes(40), 400),
    ],
)
def test_hostile_files_are_4xx(content, status):
    with pytest.raises(BadRequest) as caught:
        read_arrays(content, handler("tensor", inputs=("batch", 2)).signature)
    assert caught.value.http_status == status
    made = handler("tensor", inputs=("batch", 2))
    context = Context()
    made.handle([{"body": content}], context)
    assert context.statuses[0][0] == status


def raw(made, body, **fields):
    context = Context()
    (answer,) = made.handle([{"body": body, **fields}], context)
    return answer, context


def test_the_answer_is_in_the_form_of_the_request():
    made = handler("tensor", inputs=("batch", 2))
    json_answer, _ = raw(made, [1.0, 2.0])
    assert json_answer == b"[2.0, 4.0]"
    npy, context = raw(made, write_arrays({"x": B}, "npy"))
    assert context.types[0] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(npy)), B * 2)
    npz, context = raw(made, write_arrays({"x": B}, "npz"))
    assert context.types[0] == "application/x-npz"
    np.testing.assert_array_equal(np.load(io.BytesIO(npz))["y"], B * 2)
    as_json, _ = raw(made, write_arrays({"x": B}, "npz"), output=b"json")
    assert as_json == b"[[2.0, 2.0], [2.0, 2.0]]"
    from_json, _ = raw(made, {"x": [1.0, 2.0]}, output="npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(from_json)), [[2.0, 4.0]])


def test_wrong_names_dtypes_and_formats_are_told():
    made = handler("tensor", inputs=("batch", 2))
    for body, fields, reason in (
        (write_arrays({"q": B}, "npz"), {}, b"unknown input 'q'"),
        (write_arrays({"x": B.astype(np.float64)}, "npy"), {}, b"got float64[2, 2], expected float32"),
        (write_arrays({"x": B * np.nan}, "npy"), {}, b"NaN or Inf"),
        ([1.0, 2.0], {"output": "xml"}, b"one of json, npy, npz"),
    ):
        answer, context = raw(made, body, **fields)
        assert context.statuses[0][0] == 400
        assert reason in answer


def test_infinities_travel_in_a_file():
    made = handler("tensor", inputs=("batch", 2))
    answer, context = raw(made, write_arrays({"x": B * np.float32(3e38)}, "npy"))
    assert context.statuses == {}
    assert np.isinf(np.load(io.BytesIO(answer))).all()
    made.signatures = {"main": TWO}
    with pytest.raises(BadRequest, match="one array, this model takes"):
        read_arrays(write_arrays({"a": A}, "npy"), TWO)
