"""How calls end, and tensors as the protocol has them."""

import grpc
import pytest

Code = grpc.StatusCode


def refused(call, code):
    """The error with which a call ends."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value.details()
    return caught.value


def fp32(values, shape, name="x"):
    return {"name": name, "datatype": "FP32", "shape": shape, "contents": {"fp32_contents": values}}
