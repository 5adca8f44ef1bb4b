import numpy as np
import pytest

from torchport_runtime import Signature, SignatureError, TensorSpec


def signature(**dims: tuple[int, int]) -> Signature:
    return Signature(
        inputs={"x": TensorSpec("float32", ("batch", 3))},
        outputs={"y": TensorSpec("float32", ("batch", 1))},
        dims=dims,
    )


def test_unknown_dtype_names_the_nearest():
    with pytest.raises(SignatureError, match="did you mean 'float32'"):
        TensorSpec("flaot32", ("batch", 1))


@pytest.mark.parametrize("shape", ["batch", 3, (0,), ("1x",), (True,), (2.5,)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(SignatureError):
        TensorSpec("float32", shape)


def test_batch_has_default_bounds_and_other_dims_need_them():
    assert signature().dims == {"batch": (1, 64)}
    with pytest.raises(SignatureError, match="'time' has no bounds"):
        Signature(
            inputs={"x": TensorSpec("int64", ("batch", "time"))},
            outputs={"y": TensorSpec("float32", ("batch",))},
        )


def test_a_misspelt_dim_is_refused():
    with pytest.raises(SignatureError, match="did you mean 'batch'"):
        signature(bacth=(1, 2))


def test_batch_dim_is_what_leads_every_tensor():
    assert signature().batch_dim == "batch"
    fixed = Signature(inputs={"x": TensorSpec("float32", (3,))}, outputs={"y": TensorSpec("float32", (1,))})
    assert fixed.batch_dim is None


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "'x' is missing"),
        ({"z": np.zeros((1, 3), np.float32)}, "unknown input 'z'"),
        ({"x": np.zeros((1, 3))}, r"got float64\[1, 3\], expected float32\[batch, 3\]"),
        ({"x": np.zeros((1, 4), np.float32)}, r"got float32\[1, 4\]"),
        ({"x": np.zeros((65, 3), np.float32)}, "'batch' is 65, expected 1 to 64"),
        ({"x": np.full((1, 3), np.nan, np.float32)}, "NaN or Inf"),
    ],
)
def test_inputs_that_do_not_fit_say_why(tensors, reason):
    with pytest.raises(SignatureError, match=reason):
        signature().check_inputs(tensors)


def test_values_outside_of_their_bounds_are_refused():
    ids = Signature(
        inputs={"ids": TensorSpec("int64", ("batch", 4), low=0, high=9)},
        outputs={"y": TensorSpec("float32", ("batch",))},
    )
    with pytest.raises(SignatureError, match="10 is above 9"):
        ids.check_inputs({"ids": np.full((1, 4), 10)})


def test_one_name_is_one_size():
    pair = Signature(
        inputs={"a": TensorSpec("float32", ("batch", 2)), "b": TensorSpec("float32", ("batch", 2))},
        outputs={"y": TensorSpec("float32", ("batch",))},
    )
    with pytest.raises(SignatureError, match="'batch' is 2 in another input"):
        pair.check_inputs({"a": np.zeros((2, 2), np.float32), "b": np.zeros((3, 2), np.float32)})


def test_zeros_are_valid_inputs():
    bounded = Signature(
        inputs={"x": TensorSpec("float32", ("batch", 2), low=1.0, high=2.0)},
        outputs={"y": TensorSpec("float32", ("batch",))},
    )
    bounded.check_inputs(bounded.zeros())
    assert bounded.zeros({"batch": 5})["x"].shape == (5, 2)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, [-2.0, 0.5, 2.0]),
        ({"low": 0.0}, [0.0, 0.5, 2.0]),
        ({"high": 1.0}, [-2.0, 0.5, 1.0]),
        ({"low": 0.0, "high": 1.0}, [0.0, 0.5, 1.0]),
    ],
)
def test_clip_limits_values_by_the_bounds_that_a_spec_has(bounds, expected):
    """NumPy before 2.1, which a TorchServe may have, refuses to clip by neither."""
    spec = TensorSpec("float32", ("batch",), **bounds)
    assert spec.clip(np.float32([-2, 0.5, 2])).tolist() == expected


def test_json_round_trip():
    before = signature(batch=(2, 8))
    assert Signature.from_json(before.to_json()) == before
