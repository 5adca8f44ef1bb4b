"""Handlers that stream in a real TorchServe: pieces as they come, by REST and gRPC, in rows of a batch."""

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.server.archives import write_archive
from tests.server.grpc_client import INFERENCE, Client, prediction
from tests.server.streams import GENERATING, STEPPING, Stream, words
from torchport.store.folders import Store
from torchport.targets.torchserve import start
from torchport.targets.torchserve_setup import Ports

pytestmark = pytest.mark.serving

WORKER = {"minWorkers": 1, "maxWorkers": 1}


class Address:
    """What `Stream` asks of a server."""

    def __init__(self, ports):
        self.ports, self.urls = ports, {"inference": f"http://127.0.0.1:{ports.inference}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    write_archive(folder / "store", "stepping", STEPPING, config=WORKER)
    write_archive(
        folder / "store", "batched", STEPPING, config={**WORKER, "batchSize": 2, "maxBatchDelay": 20_000}
    )
    write_archive(folder / "store", "generating", GENERATING, config=WORKER)
    ports = Ports.free()
    with start(Store(folder / "store"), folder / "run", ports=ports):
        yield Address(ports)


def whole(server, model, asked, **headers):
    with Stream(server, model, asked, **headers) as stream:
        return stream.answer.status, stream.answer.headers["content-type"], stream.rest()


def test_the_first_piece_comes_before_the_last_is_computed(server, tmp_path):
    gate = tmp_path / "gate"
    with Stream(server, "stepping", words("one", f"wait:{gate}", "two")) as stream:
        assert stream.piece() == b"one "
        gate.touch()
        assert stream.rest() == b"two "
    with Stream(server, "generating", {"gate": str(gate)}) as stream:
        assert stream.answer.headers["content-type"] == "audio/wav"
        assert stream.rest() == b"RIFF\x00\xff"


def test_the_first_piece_comes_before_the_last_is_computed_over_grpc(server, tmp_path):
    gate = tmp_path / "gate"
    with grpc.insecure_channel(f"127.0.0.1:{server.ports.grpc_inference}") as channel:
        method = Client(channel).method(f"/{INFERENCE}/StreamPredictions", "unary_stream")

        def pieces(*asked):
            return method(prediction("stepping", data=json.dumps(words(*asked)).encode()), timeout=120)

        stream = pieces("one", f"wait:{gate}", "two")
        assert next(stream).prediction == b"one "
        gate.touch()
        assert b"".join(piece.prediction for piece in stream) == b"two "
        assert b"".join(piece.prediction for piece in pieces("whole")) == b"whole "
        assert json.loads(b"".join(piece.prediction for piece in pieces("bad")))["message"] == "a bad word"


def test_rows_of_a_batch_have_their_own_pieces_and_errors(server):
    asked = [words("a", "b", "c"), words("bad")]
    with ThreadPoolExecutor(2) as pool:
        long, bad = pool.map(lambda each: whole(server, "batched", each), asked)
    assert long == (200, "text/plain; charset=utf-8", b"a b c ")
    assert (bad[0], json.loads(bad[2])["message"]) == (400, "a bad word")


def test_an_answer_of_one_piece_and_one_that_is_refused(server):
    assert whole(server, "stepping", words("a")) == (200, "text/plain; charset=utf-8", b"a ")
    status, _, body = whole(server, "stepping", words("bad"))
    assert (status, json.loads(body)["message"]) == (400, "a bad word")


def test_a_stream_has_the_form_that_its_client_accepts(server):
    answered = whole(server, "stepping", words("a", "b"), Accept="text/event-stream")
    assert answered == (200, "text/event-stream", b"data: a \n\ndata: b \n\n")
