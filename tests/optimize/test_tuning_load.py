"""The load that tuning puts on a server: what it sends, and what it counts."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from torchport.errors import ServerError
from torchport.optimize.tune.load import http_messages, percentile, put_load
from torchport.recipe.loading import load_recipe

OK = [b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi"]


@contextmanager
def answering(answer):
    """A server on a free port; `answer` is called with each request's handler, its body read. Gives its URL
    and what was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Two small writes without an answer between them would wait for each other.
        wbufsize = -1

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, dict(self.headers), body))
            answer(self)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def reply(handler, status=200, *, chunked=False, close=False):
    handler.send_response(status)
    handler.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", "3")))
    if close:
        handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n" if chunked else b"abc")


@pytest.mark.parametrize("chunked", [False, True])
def test_every_answer_is_counted_once(chunked):
    with answering(lambda handler: reply(handler, chunked=chunked)) as (url, asked):
        measured = put_load(url, OK, connections=3, seconds=0.3)
    assert measured.errors == 0
    # The first answer of each connection is warming up.
    assert 0 < measured.answers <= len(asked) - 3
    assert measured.latency_ms["p50"] <= measured.latency_ms["p95"] <= measured.latency_ms["p99"]
    assert measured.per_second > 0


def test_the_warm_up_is_not_counted():
    with answering(reply) as (url, asked):
        measured = put_load(url, OK, connections=1, seconds=0.1, warm_up=0.3)
    assert 0 < measured.answers < len(asked) - 1


@pytest.mark.parametrize(
    ("how", "reason"),
    [({"status": 503}, "status 503"), ({"close": True}, "closes the connection after an answer")],
)
def test_refusals_are_errors_and_are_not_asked_again(how, reason):
    with answering(lambda handler: reply(handler, **how)) as (url, asked):
        measured = put_load(url, OK, connections=2, seconds=0.2)
    assert (measured.errors, measured.reason.endswith(reason)) == (2, True)
    assert len(asked) == 2


def test_a_server_that_hangs_up_is_an_error():
    with answering(lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)) as (url, _):
        measured = put_load(url, OK, connections=1, seconds=0.1)
    assert measured.errors == 1
    assert "closed the connection" in measured.reason


def test_an_answer_that_takes_longer_than_the_run_is_waited_for():
    def slowly(handler):
        time.sleep(0.2)
        reply(handler)

    with answering(slowly) as (url, _):
        measured = put_load(url, OK, connections=1, seconds=0.05)
    assert measured.answers == 1
    assert measured.latency_ms["p50"] >= 200


def test_what_an_earlier_load_left_is_in_no_figure():
    late = threading.Event()
    timer = threading.Timer(0.3, late.set)

    def first_slowly(handler):
        late.wait()
        reply(handler)

    with answering(first_slowly) as (url, asked):
        timer.start()
        measured = put_load(url, OK, connections=2, seconds=0.1)
    assert 0 < measured.answers <= len(asked) - 2
    assert measured.errors == 0


def test_a_server_without_answers_is_given_up(monkeypatch):
    monkeypatch.setattr("torchport.optimize.tune.load.PATIENCE_S", 0.2)
    ends = threading.Event()
    with answering(lambda handler: ends.wait()) as (url, _):
        with pytest.raises(ServerError, match="no answer within"):
            put_load(url, OK, connections=1, seconds=0.05)
        ends.set()


def test_no_server_is_an_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ServerError, match="no server answers"):
            put_load(f"http://127.0.0.1:{taken.getsockname()[1]}", OK, connections=1, seconds=0.05)


def test_the_recipes_requests_go_as_a_client_sends_them(write_recipe):
    two = """return [Request(body=b"\\x00raw", content_type="image/png", params={"k": "3"},
            tensors={"x": np.zeros((1, 3), np.float32)}), Request("""
    recipe = load_recipe(write_recipe(("return [Request(", two)))
    with answering(reply) as (url, asked):
        put_load(url, http_messages(url, recipe), connections=2, seconds=0.2)
    path, headers, _ = asked[0]
    assert path == "/predictions/tiny/1.0"
    assert headers["Host"] == url.removeprefix("http://")
    forms = [(h, b) for _, h, b in asked if h["Content-Type"].startswith("multipart/form-data")]
    plain = [b for _, h, b in asked if h["Content-Type"] == "application/json"]
    assert json.loads(plain[0]) == [1.0, 2.0, 3.0]
    content_type, body = forms[0][0]["Content-Type"], forms[0][1]
    parts = BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body).get_payload()
    found = {p.get_param("name", header="content-disposition"): p for p in parts}
    assert found["data"].get_content_type() == "image/png"
    assert found["data"].get_payload(decode=True) == b"\x00raw"
    assert found["k"].get_payload() == "3"


def test_percentiles_are_values_that_were_measured():
    ordered = [float(n) for n in range(1, 101)]
    assert [percentile(ordered, share) for share in (50, 95, 99)] == [50.0, 95.0, 99.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) == float("inf")
