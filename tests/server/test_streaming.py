"""Handlers that stream: pieces as they come, rows that join and leave, errors, ends, dead workers."""

import http.client
import json
from contextlib import ExitStack

import grpc
import pytest
import requests

from tests.server.archives import write_archive
from tests.server.grpc_client import INFERENCE, Client, prediction
from tests.server.streams import GENERATING, STEPPING, Stream, lines_of, words
from tests.server.waiting import wait_until
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

LIMIT = 4000
ONE_WORKER = {"minWorkers": 1, "maxWorkers": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    write_archive(folder, "stepping", STEPPING, config={**ONE_WORKER, "batchSize": 64})
    write_archive(folder, "narrow", STEPPING, config={**ONE_WORKER, "batchSize": 2})
    write_archive(
        folder,
        "lines",
        STEPPING.replace(
            "class Stepping(runtime.Handler):",
            'class Stepping(runtime.Handler):\n        stream_type = "application/x-ndjson"\n',
        ),
        config=ONE_WORKER,
    )
    write_archive(folder, "generating", GENERATING, config={**ONE_WORKER, "batchSize": 4})
    return Store(folder)


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    settings = {"max_response_size": str(LIMIT), "access_log": "true"}
    with start(store, tmp_path_factory.mktemp("run"), settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
        yield Client(channel)


def whole(server, model, asked, **headers):
    with Stream(server, model, asked, **headers) as stream:
        return stream.answer.status, stream.answer.headers["content-type"], stream.rest()


def rpc_stream(client, asked, model="stepping", **options):
    method = client.method(f"/{INFERENCE}/StreamPredictions", "unary_stream")
    return method(prediction(model, data=json.dumps(asked).encode()), timeout=180, **options)


def fence(server):
    """Return when the server has seen what its clients did before."""
    for _ in range(3):
        connection = http.client.HTTPConnection(server.urls["inference"].removeprefix("http://"), timeout=60)
        connection.request("GET", "/ping")
        connection.getresponse().read()
        connection.close()


def test_the_first_piece_comes_before_the_last_is_computed(server, tmp_path):
    gate = tmp_path / "gate"
    with Stream(server, "stepping", words("one", f"wait:{gate}", "two")) as stream:
        assert stream.piece() == b"one "
        assert stream.answer.headers["transfer-encoding"] == "chunked"
        gate.touch()
        assert stream.rest() == b"two "


def test_the_first_piece_comes_before_the_last_is_computed_over_grpc(client, tmp_path):
    gate = tmp_path / "gate"
    pieces = rpc_stream(client, words("one", f"wait:{gate}", "two"))
    assert next(pieces).prediction == b"one "
    gate.touch()
    assert [piece.prediction for piece in pieces] == [b"two "]
    assert client.predict("stepping", data=json.dumps(words("a", "b", "c")).encode()) == b"a b c "


def test_a_row_that_joins_later_does_not_wait_for_the_first_to_end(server, tmp_path):
    gate = tmp_path / "gate"
    with Stream(server, "stepping", words("one", f"wait:{gate}", "two")) as first:
        assert first.piece() == b"one "
        assert whole(server, "stepping", words("a", "b"))[2] == b"a b "
        gate.touch()
        assert first.rest() == b"two "


def test_no_more_rows_are_live_than_the_batch_size(server, tmp_path):
    gate, note = tmp_path / "gate", tmp_path / "note"
    with (
        Stream(server, "narrow", words("one", f"wait:{gate}", name="1", note=str(note))) as first,
        Stream(server, "narrow", words("one", f"wait:{gate}", name="2", note=str(note))) as second,
    ):
        assert first.piece() + second.piece() == b"one one "
        with Stream(server, "narrow", words("three", name="3", note=str(note))) as third:
            steps = len(lines_of(note))
            wait_until(lambda: len(lines_of(note)) > steps + 4)
            assert "3" not in lines_of(note)
            first.leave()
            assert third.rest() == b"three "
        gate.touch()
        second.rest()


def test_the_worker_stops_computing_for_clients_that_leave_within_one_step(server, client, tmp_path):
    gate, held, note = (tmp_path / name for name in ("gate", "step", "note"))
    asked = [words("one", f"wait:{gate}", "two", name=str(n), note=str(note)) for n in range(32)]
    with ExitStack() as stack:
        streams = [stack.enter_context(Stream(server, "stepping", each)) for each in asked[:24]]
        calls = [rpc_stream(client, each) for each in asked[24:]]
        assert [stream.piece() for stream in streams] == [b"one "] * 24
        assert [next(call).prediction for call in calls] == [b"one "] * 8
        # Half of the clients leave in the middle of a step.
        last = stack.enter_context(Stream(server, "stepping", words(f"hold:{held}")))
        wait_until((tmp_path / "step.held").exists)
        cancelled = server.log().count("CANCELLED")
        for stream in streams[:12]:
            stream.leave()
        for call in calls[:4]:
            call.cancel()
        wait_until(lambda: server.log().count("CANCELLED") == cancelled + 4)
        fence(server)
        before = len(lines_of(note))
        held.touch()
        assert last.rest() == b""
        left = [str(n) for n in (*range(12), *range(24, 28))]
        wait_until(lambda: sum(line.endswith(" is gone") for line in lines_of(note)) == len(left))
        later = lines_of(note)[before:]
        assert not set(left) & set(later), "a step was computed for a client that had left"
        wait_until(lambda: "31" in lines_of(note)[before:])
        gate.touch()
        assert [stream.rest() for stream in streams[12:]] == [b"two "] * 12
        assert [[piece.prediction for piece in call] for call in calls[4:]] == [[b"two "]] * 4


def test_a_generator_is_closed_where_it_stands_when_its_client_leaves(server, tmp_path):
    gate = tmp_path / "gate"
    with Stream(server, "generating", {"gate": str(gate)}) as stream:
        assert (stream.piece(), stream.answer.headers["content-type"]) == (b"RIFF", "audio/wav")
    wait_until((tmp_path / "gate.left").exists)
    gate.touch()
    assert whole(server, "generating", {"gate": str(gate)}, Accept="text/event-stream")[1:] == (
        "audio/wav",
        b"RIFF\x00\xff",
    )


@pytest.mark.parametrize(
    ("model", "accept", "content_type", "body"),
    [
        ("stepping", "*/*", "text/plain; charset=utf-8", b"a b "),
        ("stepping", "text/event-stream", "text/event-stream", b"data: a \n\ndata: b \n\n"),
        ("stepping", "application/x-ndjson", "application/x-ndjson", b'{"word": "a"}\n{"word": "b"}\n'),
        ("lines", "*/*", "application/x-ndjson", b'{"word": "a"}\n{"word": "b"}\n'),
        ("lines", "text/event-stream", "text/event-stream", b"data: a \n\ndata: b \n\n"),
    ],
)
def test_a_stream_has_the_form_that_its_client_accepts(server, model, accept, content_type, body):
    assert whole(server, model, words("a", "b"), Accept=accept) == (200, content_type, body)


def test_what_is_wrong_before_the_first_piece_is_an_answer_and_after_it_an_end(server, client):
    status, _, body = whole(server, "stepping", words("bad"))
    assert (status, json.loads(body)["message"]) == (400, "a bad word")
    status, _, body = whole(server, "stepping", [])
    assert (status, json.loads(body)["code"]) == (500, 500)
    status, _, body = whole(server, "generating", {})
    assert (status, json.loads(body)["message"]) == (400, "no gate")
    with Stream(server, "stepping", words("a", "bad")) as stream:
        assert stream.piece() == b"a "
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            stream.rest()
    pieces = rpc_stream(client, words("a", "bad"))
    assert next(pieces).prediction == b"a "
    with pytest.raises(grpc.RpcError) as refused:
        next(pieces)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "a bad word" in refused.value.details()


def test_an_exception_in_a_step_fails_its_live_rows_and_no_later_ones(server, tmp_path):
    gate = tmp_path / "gate"
    with Stream(server, "narrow", words("one", f"wait:{gate}")) as begun:
        assert begun.piece() == b"one "
        status, _, body = whole(server, "narrow", words("break"))
        assert (status, json.loads(body)["code"]) == (500, 500)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            begun.rest()
    assert whole(server, "narrow", words("a"))[2] == b"a "


def test_all_pieces_together_are_no_more_than_the_maximum_of_an_answer(server):
    status, _, body = whole(server, "stepping", words("x" * LIMIT))
    assert (status, json.loads(body)["code"]) == (500, 500)
    assert "max_response_size" in json.loads(body)["message"]
    with Stream(server, "stepping", words(*["x" * 99] * (LIMIT // 100 + 1))) as stream:
        assert stream.answer.status == 200
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            stream.rest()
    assert len(whole(server, "stepping", words(*["x" * 99] * (LIMIT // 100)))[2]) == LIMIT


def test_a_worker_that_dies_costs_the_streams_that_had_begun_and_no_others(server, tmp_path):
    gate = tmp_path / "gate"
    with Stream(server, "stepping", words("one", f"wait:{gate}")) as begun:
        assert begun.piece() == b"one "
        with (
            Stream(server, "stepping", words(f"wait:{gate}", "late")) as silent,
            Stream(server, "stepping", words(f"die:{tmp_path / 'dead'}", "lives")) as deadly,
        ):
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                begun.rest()
            gate.touch()
            assert deadly.rest() == b"lives "
            assert silent.rest() == b"late "


def test_scaling_down_lets_live_rows_finish(server, tmp_path):
    gate = tmp_path / "gate"
    with Stream(server, "narrow", words("one", f"wait:{gate}", "two")) as stream:
        assert stream.piece() == b"one "
        url = f"{server.urls['management']}/models/narrow"
        assert requests.put(url, params={"min_worker": 0}, timeout=60).status_code == 202
        wait_until(lambda: server.client().describe("narrow")[0]["workers"][0]["status"] == "UNLOADING")
        gate.touch()
        assert stream.rest() == b"two "


def test_the_end_of_the_server_lets_live_rows_finish(store, tmp_path):
    gate = tmp_path / "gate"
    with start(store, tmp_path / "run", arguments=("--models", "stepping", "--no-grpc")) as server:
        with Stream(server, "stepping", words("one", f"wait:{gate}", "two")) as stream:
            assert stream.piece() == b"one "
            server.process.terminate()
            wait_until(lambda: "answering what was taken" in server.log())
            gate.touch()
            assert stream.rest() == b"two "
        assert server.process.wait(60) == 0
