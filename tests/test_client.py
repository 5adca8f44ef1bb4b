"""The client against a small server of its own, which answers what it is told to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from torchport.client import Client
from torchport.errors import RequestError, ServerError


@pytest.fixture
def server():
    """Answers from `replies` (status, headers, body), in order; the last for ever. Keeps the requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            length = int(self.headers.get("Content-Length", 0))
            server.seen.append((self.command, self.path, dict(self.headers), self.rfile.read(length)))
            status, headers, body = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
            if status is None:
                server.release.wait(10)
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.seen, server.replies, server.release = [], [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


JSON = {"Content-Type": "application/json"}


def test_json_goes_and_comes(server):
    server.replies = [(200, JSON, b"[14.0]")]
    with Client(server.url) as client:
        assert client.predict("a/b", json=[4.0], version="1.0") == [14.0]
    command, path, headers, body = server.seen[0]
    assert (command, path) == ("POST", "/predictions/a%2Fb/1.0")
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == [4.0]


def test_parameters_go_as_fields_of_a_form(server):
    server.replies = [(200, JSON, b"{}")]
    with Client(server.url) as client:
        client.predict("digits", body=b"\x89PNG", content_type="image/png", params={"k": "3"})
    _, path, headers, body = server.seen[0]
    assert path == "/predictions/digits"
    assert headers["Content-Type"].startswith("multipart/form-data")
    assert b'name="data"; filename="data"\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n' in body
    assert b'name="k"\r\n\r\n3\r\n' in body


def test_other_answers_are_bytes(server):
    server.replies = [(200, {"Content-Type": "image/png"}, b"\x89PNG")]
    with Client(server.url) as client:
        assert client.predict("gan", body=b"x") == b"\x89PNG"


def test_503_is_asked_again_and_others_are_not(server):
    busy = (503, {**JSON, "Retry-After": "0"}, b'{"message": "busy"}')
    server.replies = [busy, busy, (200, JSON, b"[1.0]")]
    with Client(server.url) as client:
        assert client.predict("m", json=[1]) == [1.0]
        assert len(server.seen) == 3
        server.replies = [(400, JSON, b'{"code": 400, "message": "wrong length"}')]
        with pytest.raises(RequestError, match="refused with 400: wrong length") as caught:
            client.predict("m", json=[1])
    assert (caught.value.status, caught.value.reason, len(server.seen)) == (400, "wrong length", 4)


def test_a_server_that_stays_busy_says_so(server):
    server.replies = [(503, {**JSON, "Retry-After": "0"}, b'{"message": "busy"}')]
    with Client(server.url, retries=2) as client, pytest.raises(RequestError, match="503: busy"):
        client.predict("m", json=[1])
    assert len(server.seen) == 3


def test_no_answer_in_time(server):
    server.replies = [(None, {}, b"")]
    with (
        Client(server.url, timeout=0.2) as client,
        pytest.raises(ServerError, match="no answer within 0.2 s"),
    ):
        client.predict("m", json=[1])
    assert len(server.seen) == 1  # A request that may have been taken is not sent twice.


def test_nobody_there():
    with (
        Client("http://127.0.0.1:9", retries=0) as client,
        pytest.raises(ServerError, match="torchport serve"),
    ):
        client.ping()


def test_what_is_no_model_server(server):
    server.replies = [(200, {"Content-Type": "text/html"}, b"<html>")]
    with Client(server.url) as client, pytest.raises(ServerError, match="is it a model server"):
        client.ping()


def test_all_pages_of_models(server):
    def page(names, **more):
        models = [{"modelName": n, "modelUrl": f"{n}.mar"} for n in names]
        return 200, JSON, json.dumps({"models": models, **more}).encode()

    server.replies = [page("ab", nextPageToken="2"), page("c")]
    with Client(server.url, server.url) as client:
        assert client.models() == {"a": "a.mar", "b": "b.mar", "c": "c.mar"}
    assert "next_page_token=2" in server.seen[1][1]


def test_keys_are_read_anew_for_each_request(server, tmp_path):
    server.replies = [(200, JSON, b'{"status": "Healthy"}')]
    key_file = tmp_path / "key_file.json"
    with Client(server.url, "http://127.0.0.1:9", key_file=key_file) as client:
        with pytest.raises(ServerError, match="no key file"):
            client.ping()
        for key in ("one", "two"):
            key_file.write_text(json.dumps({"inference": {"key": key}}))
            assert client.ping() == "Healthy"
    assert [headers["Authorization"] for _, _, headers, _ in server.seen] == ["Bearer one", "Bearer two"]
