"""The end of the server: clients are told, what they have sent is answered, and then it is over."""

import asyncio

import pytest

from tests.server.grpc.http2.conftest import local
from tests.server.grpc.http2.raw import Raw
from tests.server.waiting import wait_until
from torchport.server.grpc.http2 import frames as h2

pytestmark = pytest.mark.server


@pytest.fixture
def ending():
    server = local()
    server.start()
    yield server
    server.stop()


def test_calls_that_cross_the_goaway_are_answered(ending):
    with Raw(ending.port) as raw:
        raw.call(1, "/t.T/Echo", b"before")
        assert raw.status(1)["grpc-status"] == "0"
        stopping = asyncio.run_coroutine_threadsafe(ending.server.stop(30.0), ending.loop)
        told = raw.until(h2.GOAWAY)
        assert told.payload[:4] == h2.MAX_STREAM_ID.to_bytes(4, "big")
        ping = raw.until(h2.PING)
        # Sent before the client has seen any of this.
        raw.call(3, "/t.T/Echo", b"crosses")
        raw.call(5, "/t.T/Echo")
        assert raw.status(3)["grpc-status"] == "0"
        raw.send(h2.frame(h2.PING, h2.ACK, 0, ping.payload))
        assert raw.until(h2.GOAWAY).payload[:4] == (5).to_bytes(4, "big")
        # Known to be too late: it is not answered, and the client knows.
        raw.call(7, "/t.T/Echo", b"late")
        raw.data(5, b"\0\0\0\0\1a", ends=True)
        assert raw.status(5)["grpc-status"] == "0"
        assert raw.ends() is None
        stopping.result(30)


def test_what_is_not_answered_in_time_is_unavailable(ending):
    with Raw(ending.port) as raw:
        raw.call(1, "/t.T/Wait", b"")
        wait_until(lambda: ending.begun == 1)
        stopping = asyncio.run_coroutine_threadsafe(ending.server.stop(0.1), ending.loop)
        assert raw.status(1)["grpc-status"] == "14"
        stopping.result(30)
    assert ending.cancelled == 1
    assert not ending.running
