"""No message within the size limit holds the event loop up."""

import grpc
import pytest

from tests.server.grpc_client import INFERENCE, OPEN_INFERENCE, Client
from tests.server.loop_lag import holds_the_loop
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server

SIZE = 6_500_000
"""Just under `max_request_size`."""


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    """A server with the sizes that it has by default."""
    # Refused messages are counted no longer: some hundred of them would be too many.
    settings = {"default_workers_per_model": "1", "max_request_memory": str(16 << 20)}
    with start(store, tmp_path_factory.mktemp("run"), settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
        yield Client(channel)


def filled(with_: bytes) -> bytes:
    return with_ * (SIZE // len(with_))


def varint(number: int) -> bytes:
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def field(number: int, value: bytes) -> bytes:
    """A field of bytes, of text, of a message, or packed."""
    return bytes([number << 3 | 2]) + varint(len(value)) + value


def asked(datatype: bytes, count: int, contents: bytes) -> bytes:
    shape = field(3, varint(count))
    return field(1, b"linear") + field(5, field(1, b"x") + field(2, datatype) + shape + field(5, contents))


MESSAGES = {
    "inputs": filled(field(5, b"")),
    "raw contents": field(5, field(1, b"x")) + filled(field(7, b"")),
    "parameters": b"".join(field(4, field(1, b"%d" % n)) for n in range(SIZE // 12)),
    "outputs": filled(field(6, b"")),
    "a packed shape": field(5, field(1, b"x") + field(3, filled(b"\1"))),
    "a shape": field(5, field(1, b"x") + filled(b"\x18\1")),
    "truths": asked(b"BOOL", SIZE, field(1, filled(b"\1"))),
    "whole numbers": asked(b"INT64", SIZE, field(3, filled(b"\1"))),
    "numbers one by one": asked(b"BOOL", SIZE // 2, filled(b"\x08\1")),
    "floats": asked(b"FP32", SIZE // 4, field(6, bytes(SIZE // 4 * 4))),
    "texts": asked(b"BOOL", 1, filled(b"\x42\0")),
    "unknown fields": filled(b"\x78\0"),
    "groups": filled(b"\x7b\x7c"),
}


REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize("case", MESSAGES)
def test_no_inference_request_holds_the_loop(server, client, case):
    def ask() -> None:
        with pytest.raises(grpc.RpcError) as caught:
            client.call(OPEN_INFERENCE, "ModelInfer", MESSAGES[case], timeout=120)
        assert caught.value.code() in REFUSED

    assert not holds_the_loop(server.urls["metrics"], ask)


def test_no_number_of_fields_holds_the_loop(server, client):
    message = field(1, b"obedient") + b"".join(field(3, field(1, b"%d" % n)) for n in range(SIZE // 12))

    def ask() -> None:
        with pytest.raises(grpc.RpcError) as caught:
            client.call(INFERENCE, "Predictions", message, timeout=120)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    assert not holds_the_loop(server.urls["metrics"], ask)
