"""Anything at all: requests with random damage."""

from __future__ import annotations

import random

import pytest

from tests.server.http.connections import wire
from tests.server.http.raw_requests import CHUNKED, LAST_PING, PING, VALID, post
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server


def mutated(source: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(source.randint(1, 6)):
        at = source.randrange(len(data) + 1)
        what = source.randrange(5)
        if what == 0:
            data[at:at] = bytes(source.randrange(256) for _ in range(source.randint(1, 8)))
        elif what == 1:
            del data[at : at + source.randint(1, 20)]
        elif what == 2 and at < len(data):
            data[at] ^= 1 << source.randrange(8)
        elif what == 3:
            data[at:at] = source.choice([b"\r\n", b"\r\n\r\n", b"\0", b": ", b"%", b"chunked", b"9" * 20])
        else:
            other = source.randrange(len(data) + 1)
            data[at:at] = data[other : other + 30]
    return bytes(data)


def test_random_requests_are_answered_or_refused(impatient: ServerProcess) -> None:
    source = random.Random(20261123)
    form = (
        b'--b\r\nContent-Disposition: form-data; name="data"; filename="x"\r\n'
        b"Content-Type: application/json\r\n\r\n[4.0]\r\n--b--\r\n"
    )
    seeds = [
        VALID,
        PING,
        CHUNKED + b"5\r\n[4.0]\r\n0\r\nX: y\r\n\r\n",
        post(form).replace(b"application/json", b"multipart/form-data; boundary=b", 1),
        post(b"data=%5B4.0%5D").replace(b"application/json", b"application/x-www-form-urlencoded"),
        post(b'{"instances": [[4.0]]}', path="/v1/models/linear:predict"),
        post(b"[4.0]", "Connection: Upgrade", "Upgrade: h2c", "Expect: 100-continue"),
        bytes(source.randrange(256) for _ in range(300)),
    ]
    for _ in range(30):
        held = []
        for _ in range(15):  # Fewer than max_connections.
            raw = wire(impatient)
            data = mutated(source, source.choice(seeds))
            raw.try_to_send(data + LAST_PING)
            held.append((raw, data))
        for raw, data in held:
            answers = 0
            # What is not whole is given up, so that each connection ends.
            while not raw.has_ended():
                answer = raw.answer()
                assert answer.status < 500 or answer.status in (501, 505), data
                answers += 1
            assert answers, data
            raw.socket.close()
