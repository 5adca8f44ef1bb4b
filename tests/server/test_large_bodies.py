"""Bodies in shared memory: no wrong byte, nobody else's bytes, and nothing in use in the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.large_bodies import SETTINGS, expected, message_of, run, tensors_of, write_hashing_archive
from tests.server.archives import write_archive
from tests.server.http.connections import wire
from tests.server.metrics import metric
from tests.server.waiting import wait_until
from torchport.server.grpc.messages import open_inference
from torchport.server.wire import LARGE
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

pytestmark = pytest.mark.server

SECRET = b"<a secret of somebody else's!!!>"
INVERTED = bytes(255 - byte for byte in SECRET)
SECRETS = SECRET * (1 << 15)

KEEPING = """
import hashlib

import numpy as np

from torchport_runtime import Signature, TensorSpec

DATA, HASHES = TensorSpec("uint8", ("batch", 100_000)), TensorSpec("uint8", ("batch", "kept", 32))
SIGNATURE = Signature(inputs={"data": DATA}, outputs={"hashes": HASHES}, dims={"kept": (1, 64)})


class Keeping:
    def __init__(self):
        self.signatures, self.backends = {"main": SIGNATURE}, {"main": self}
        self.kept = []

    def initialize(self, context):
        pass

    def handle(self, data, context):
        self.kept.clear()
        return ["forgotten"] * len(data)

    def run(self, inputs):
        self.kept.append(inputs["data"])
        hashes = [np.frombuffer(hashlib.sha256(kept).digest(), np.uint8) for kept in self.kept]
        return {"hashes": np.stack(hashes)[None]}
"""
"""A handler that keeps the tensors of all its requests, and answers with a hash of each."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("large")
    write_hashing_archive(folder / "store", workers=1)
    write_archive(folder / "store", "keeping", KEEPING, config={"minWorkers": 1, "maxWorkers": 1})
    with start(Store(folder / "store"), folder / "run", settings=SETTINGS) as server:
        yield server


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
        yield channel


def slots(server: ServerProcess) -> float:
    return metric(server, "torchport_shared_memory_slots")


def infer(server: ServerProcess, model: str, body: bytes) -> bytes:
    """The tensors of the answer, one after another."""
    headers, sent = tensors_of(body)
    url = f"{server.urls['inference']}/v2/models/{model}/infer"
    answer = requests.post(url, sent, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.content[int(answer.headers["Inference-Header-Content-Length"]) :]


@pytest.mark.slow
def test_clients_that_leave_and_workers_that_die_cost_no_byte_and_no_slot(tmp_path: Path) -> None:
    tally = run(tmp_path, seconds=5.0, seed=15)
    print(tally.outcomes)
    assert tally.faults == []


@pytest.mark.parametrize("size", [LARGE - 1, LARGE, LARGE + 1, 1_000_003])
def test_every_size_by_every_way(server: ServerProcess, channel: grpc.Channel, size: int) -> None:
    body = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    url = f"{server.urls['inference']}/predictions/hashing"
    assert requests.post(url, body, timeout=60).content == expected(body)
    pieces = (body[at : at + 10_000] for at in range(0, size, 10_000))
    assert requests.post(url, pieces, timeout=60).content == expected(body)
    assert requests.post(url, files={"body": body}, timeout=60).content == expected(body)
    assert infer(server, "hashing", body) == expected(body)
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        response_deserializer=open_inference.ModelInferResponse.FromString,
    )
    assert b"".join(call(message_of(body)).raw_output_contents) == expected(body)
    wait_until(lambda: slots(server) == 0)


def test_a_tensor_that_a_handler_keeps_stays_what_it_was(server: ServerProcess) -> None:
    bodies = [bytes([number]) * 100_000 for number in range(1, 9)]
    for number in range(1, len(bodies) + 1):
        hashes = infer(server, "keeping", bodies[number - 1])
        assert hashes == b"".join(hashlib.sha256(body).digest() for body in bodies[:number])
    assert metric(server, "torchport_shared_memory_slots", model_name="keeping") == len(bodies)
    requests.post(f"{server.urls['inference']}/predictions/keeping", b"x", timeout=60)
    wait_until(lambda: slots(server) == 0)


def plant(server: ServerProcess) -> None:
    """Leave secrets in slots that are free now."""
    for size in (LARGE, 4 * LARGE, len(SECRETS)):
        infer(server, "hashing", SECRETS[:size])


counts = st.one_of(st.sampled_from([0, 1, LARGE - 1, LARGE, LARGE + 1]), st.integers(0, 5 * LARGE))
sizes = st.one_of(counts, st.sampled_from([-1, 1 << 31, 1 << 63, 1 << 64, 10**17]))


@st.composite
def questions(draw: st.DrawFn) -> tuple[bytes, bytes, int]:
    """Head and body of a request, and the length of the body that the head promises."""
    data = b"x" * draw(counts)
    inputs = []
    for name in draw(st.lists(st.sampled_from(["data", "other"]), min_size=1, max_size=3)):
        shape = draw(st.one_of(st.just([1, len(data)]), st.lists(sizes, max_size=4)))
        size = draw(st.one_of(st.just(len(data)), sizes))
        parameters = {"binary_data_size": size}
        inputs.append({"name": name, "datatype": "UINT8", "shape": shape, "parameters": parameters})
    asked = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    head_length = draw(st.one_of(st.just(len(asked)), sizes))
    body = asked + data
    length = draw(st.one_of(st.just(len(body)), st.integers(0, len(body)), st.integers(0, 6 * LARGE)))
    path = draw(st.sampled_from(["/v2/models/hashing/infer", "/predictions/hashing"]))
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", "Connection: close"]
    lines += [f"Inference-Header-Content-Length: {head_length}", "Content-Type: application/octet-stream"]
    return "\r\n".join([*lines, "", ""]).encode(), body[:length], length


@settings(max_examples=150, deadline=None)
@given(question=questions())
def test_no_answer_has_bytes_of_another_request(
    server: ServerProcess, question: tuple[bytes, bytes, int]
) -> None:
    head, body, length = question
    plant(server)
    with wire(server) as other, wire(server) as raw:
        # A neighbour's body is not whole: its slot is in use.
        promises = [b"Content-Length: %d\r\n" % size for size in (length, len(SECRETS))]
        other.send(head.replace(*promises, 1))
        other.send(SECRETS[: 3 * LARGE])
        raw.send(head + body)
        if len(body) < length:
            return  # It waits for the rest, which does not come.
        answer = raw.answer()
    assert SECRET not in answer.body
    assert INVERTED not in answer.body
    assert answer.status in (200, 400)
    if answer.status == 200 and b"/predictions" in head:
        assert answer.body == expected(body)


@settings(max_examples=100, deadline=None)
@given(
    given_sizes=st.lists(counts, max_size=3),
    shapes=st.lists(st.lists(sizes.filter(lambda size: size < 1 << 63), max_size=3), min_size=1, max_size=3),
    cut=st.integers(0, 100),
)
def test_no_answer_over_grpc_has_bytes_of_another_request(
    server: ServerProcess, given_sizes: list[int], shapes: list[list[int]], cut: int
) -> None:
    plant(server)
    request = open_inference.ModelInferRequest(model_name="hashing")
    for shape in shapes:
        request.inputs.add(name="data", datatype="UINT8", shape=shape)
    request.raw_input_contents.extend(b"x" * size for size in given_sizes)
    message = request.SerializeToString()
    address = f"127.0.0.1:{server.ports['grpc_inference']}"
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            answer = call(message[: len(message) - cut], timeout=60)
        except grpc.RpcError as err:
            assert isinstance(err, grpc.Call)
            assert err.code() is grpc.StatusCode.INVALID_ARGUMENT
            answer = err.details().encode()
    assert SECRET not in answer
    assert INVERTED not in answer
