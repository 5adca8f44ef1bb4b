"""Raw sockets against a running server: what no client library would send.

After every test the server answers as before, by the same processes, and its log has no traceback.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import selectors
import shutil
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.server.archives import write_archive
from torchport.server_process import ServerProcess, start
from torchport.store import Store

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the server's memory in /proc")

MIB = 1 << 20
PATIENCE_S = 30.0
"""How long an answer is waited for; none takes so long unless something is broken."""

ODD = """
    import json
    import time

    from ts.protocol.otf_message_handler import send_intermediate_predict_response

    def handle(data, context):
        if data is None:
            return None
        (row,) = data
        asked = row["body"]
        for name, text in asked.get("headers", {}).items():
            context.set_response_header(0, name, text)
        if "status" in asked:
            context.set_response_status(code=asked["status"], idx=0)
        if "type" in asked:
            context.set_response_content_type(0, asked["type"])
        time.sleep(asked.get("sleep", 0))
        for _ in range(asked.get("pieces", 0)):
            send_intermediate_predict_response(["piece"], context.request_ids, "", 200, context)
        return [asked.get("text", "x") * asked.get("times", 1)]
"""
"""A handler that does what a hostile client, or a careless author, might make one do."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One connection of our own."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self.socket = socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S)
        self._buffer = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Wire:
        self.socket.sendall(data)
        return self

    def try_to_send(self, data: bytes) -> None:
        """Send what the server may not want to have to its end."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def _more(self) -> bool:
        try:
            got = self.socket.recv(1 << 18)
        except ConnectionError:
            return False
        self._buffer += got
        return bool(got)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            assert self._more(), f"the connection ended in the middle of an answer: {self._buffer[:200]!r}"
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _exactly(self, count: int) -> bytes:
        pieces, have = [self._buffer], len(self._buffer)
        while have < count:
            self._buffer = b""
            assert self._more(), "the connection ended in the middle of a body"
            pieces.append(self._buffer)
            have += len(self._buffer)
        whole = b"".join(pieces)
        self._buffer = whole[count:]
        return whole[:count]

    def answer(self, method: str = "GET") -> Answer:
        """The next answer, read as HTTP says."""
        first, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ")
        assert version == "HTTP/1.1", first
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name not in headers or name == "x-twice", f"{name} comes twice"
            headers[name] = value
        body = b""
        if int(status) in (204, 304) or int(status) < 200 or method == "HEAD":
            pass
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size)
                assert self._exactly(2) == b"\r\n"
            assert self._exactly(2) == b"\r\n"
        else:
            while self._more():
                pass
            body, self._buffer = self._buffer, b""
        return Answer(int(status), headers, body)

    def has_ended(self) -> bool:
        """Whether the server closes the connection, with nothing more to say."""
        while not self._buffer:
            if not self._more():
                return True
        return False


def post(body: bytes, *headers: str, path: str = "/predictions/linear") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def odd(**asked: object) -> bytes:
    return post(json.dumps(asked).encode(), path="/predictions/odd")


VALID = post(b"[4.0]")
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_PING = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def folder(linear_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    shutil.copy(linear_archive, store)
    write_archive(store, "odd", ODD)
    return store


def started(folder: Path, run: Path, **settings: str) -> ServerProcess:
    settings = {"default_workers_per_model": "1", "max_response_size": str(64 * MIB), **settings}
    return start(Store(folder), run, settings=settings, arguments=("--ncs", "--no-grpc"))


@pytest.fixture(scope="module")
def lenient(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the limits that it has by default."""
    with started(folder, tmp_path_factory.mktemp("lenient")) as server:
        yield server


@pytest.fixture(scope="module")
def strict(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose limits are met soon."""
    limits = dict.fromkeys(("header_timeout", "body_timeout", "keep_alive_timeout"), "1")
    with started(folder, tmp_path_factory.mktemp("strict"), max_connections="20", **limits) as server:
        yield server


def workers(server: ServerProcess) -> list[str]:
    return Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()


def is_unharmed(server: ServerProcess, before: list[str], said: int) -> None:
    with wire(server) as raw:
        answer = raw.send(VALID).answer()
    assert (answer.status, json.loads(answer.body)) == (200, pytest.approx([14.165], abs=0.1))
    assert server.process.poll() is None
    assert workers(server) == before
    assert "Traceback" not in server.log()[said:]


@pytest.fixture
def server(lenient: ServerProcess) -> Iterator[ServerProcess]:
    before, said = workers(lenient), len(lenient.log())
    yield lenient
    is_unharmed(lenient, before, said)


@pytest.fixture
def impatient(strict: ServerProcess) -> Iterator[ServerProcess]:
    before, said = workers(strict), len(strict.log())
    yield strict
    is_unharmed(strict, before, said)


def wire(server: ServerProcess, api: str = "inference") -> Wire:
    return Wire(server.urls[api])


def refused(server: ServerProcess, data: bytes) -> Answer:
    """The one answer to what is refused; the connection ends with it."""
    with wire(server) as raw:
        raw.try_to_send(data)
        answer = raw.answer()
        assert json.loads(answer.body)["code"] == answer.status
        assert answer.headers["connection"] == "close"
        assert raw.has_ended()
    return answer


def is_answered(server: ServerProcess) -> bool:
    try:
        with wire(server) as raw:
            return raw.send(PING).answer().status == 200
    except (ConnectionError, AssertionError):
        return False


class Peak:
    """The most memory that a process had since this was made, over what it had then; bytes."""

    def __init__(self, pid: int) -> None:
        self._status, self._before = Path(f"/proc/{pid}/status"), 0
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def _read(self, name: str) -> int:
        line = next(line for line in self._status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    @property
    def growth(self) -> int:
        return self._read("VmHWM") - self._before


# Framing: where a request ends must not be open to doubt.

POST = b"POST /predictions/linear HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

AMBIGUOUS = {
    "length and chunks": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n[4.0]", 400),
    "a list of lengths": (POST + b"Content-Length: 5, 5\r\n\r\n[4.0]", 400),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "a signed length": (POST + b"Content-Length: +5\r\n\r\n[4.0]", 400),
    "a length in hex": (POST + b"Content-Length: 0x5\r\n\r\n[4.0]", 400),
    "a length with a space": (POST + b"Content-Length: 5 5\r\n\r\n[4.0]", 400),
    "a huge length": (POST + b"Content-Length: 18446744073709551621\r\n\r\n[4.0]", 400),
    "no length": (POST + b"Content-Length:\r\n\r\n", 400),
    # RFC 9112, 6.1: a coding that is not understood is answered 501.
    "an unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "chunks that are not last": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "chunks of something else": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "two codings": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400,
    ),
    "a vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "a space before the colon": (POST + b"Content-Length : 5\r\n\r\n[4.0]", 400),
    "a folded header": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "a bare line feed": (POST + b"Content-Length: 5\n\r\n[4.0]", 400),
    "a bare carriage return": (POST + b"X: a\rContent-Length: 5\r\n\r\n[4.0]", 400),
    "NUL in a header": (POST + b"X: a\0b\r\n\r\n", 400),
    "a control character": (POST + b"X: a\x01b\r\n\r\n", 400),
    "a nameless header": (POST + b": x\r\n\r\n", 400),
    "chunk size: negative": (CHUNKED + b"-1\r\nx\r\n0\r\n\r\n", 400),
    "chunk size: prefix": (CHUNKED + b"0x5\r\n[4.0]\r\n0\r\n\r\n", 400),
    "chunk size: overflow": (CHUNKED + b"1ffffffffffffffff\r\nx\r\n0\r\n\r\n", 400),
    "chunk size: none": (CHUNKED + b"\r\nx\r\n0\r\n\r\n", 400),
    "chunk size: bare line feed": (CHUNKED + b"5\n[4.0]\r\n0\r\n\r\n", 400),
    "chunk size: too small": (CHUNKED + b"3\r\n[4.0]\r\n0\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_request_whose_end_is_in_doubt_is_refused_and_nothing_after_it_is_read(
    server: ServerProcess, case: str
) -> None:
    data, status = AMBIGUOUS[case]
    assert refused(server, data + PING).status == status


NO_HTTP = {
    "unknown method": (b"EXPLODE / HTTP/1.1\r\n\r\n", 400),
    "lower case method": (b"get /ping HTTP/1.1\r\n\r\n", 400),
    "no path": (b"GET  HTTP/1.1\r\n\r\n", 400),
    "an authority": (b"GET localhost:80 HTTP/1.1\r\n\r\n", 400),
    "an asterisk": (b"GET * HTTP/1.1\r\n\r\n", 400),
    "CONNECT": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n", 405),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400),
    "an unknown version": (b"GET /ping HTTP/7.3\r\n\r\n", 400),
    "a raw path of UTF-8": ("GET /predictions/é HTTP/1.1\r\n\r\n".encode(), 400),
    "a control character in the path": (b"GET /pi\x07ng HTTP/1.1\r\n\r\n", 400),
    "NUL in the path": (b"GET /pi\0ng HTTP/1.1\r\n\r\n", 400),
    "a TLS hello": (bytes.fromhex("1603010200010001fc0303") + bytes(range(200)), 400),
    "gRPC": (b"\0\0\0\0\x05hello", 400),
    "a question of DNS": (b"\0\x1c\xaa\xaa\1\0\0\1\0\0\0\0\0\0", 400),
}


@pytest.mark.parametrize("case", NO_HTTP)
def test_what_is_no_request_is_refused(server: ServerProcess, case: str) -> None:
    data, status = NO_HTTP[case]
    assert refused(server, data).status == status


ACCEPTED = {
    "an absolute URL": b"GET http://example.org/ping HTTP/1.1\r\nHost: x\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    "empty lines before it": b"\r\n\r\n" + PING,
    "blanks after values": b"POST /predictions/linear HTTP/1.1\r\nContent-Type: application/json \t\r\n"
    b"Content-Length: 5 \t\r\n\r\n[4.0]",
    "leading zeros": POST
    + b"Content-Type: application/json\r\nContent-Length: 0000000000000005\r\n\r\n[4.0]",
    "chunks": CHUNKED + b"2\r\n[4\r\n3;name=value\r\n.0]\r\n0\r\nTrailer: x\r\n\r\n",
    "one byte a chunk": CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in b"[4.0]") + b"0\r\n\r\n",
    "websocket": b"GET /ping HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "h2c": b"GET /ping HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    "h2c with a body": post(b"[4.0]", "Connection: Upgrade", "Upgrade: h2c"),
    "h2c with chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
    + b"5\r\n[4.0]\r\n0\r\n\r\n",
    "h2c with an empty body": b"POST /ping HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 0\r\n\r\n",
    "a body of no use": b"GET /ping HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    "60 kB of headers": b"GET /ping HTTP/1.1\r\nX: " + b"a" * 60_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("case", ACCEPTED)
@pytest.mark.parametrize("piece", [1 << 20, 7], ids=["whole", "in pieces"])
def test_what_http_allows_is_answered_and_the_next_request_too(
    server: ServerProcess, case: str, piece: int
) -> None:
    with wire(server) as raw:
        data = ACCEPTED[case] + LAST_PING
        for at in range(0, len(data), piece):
            raw.send(data[at : at + piece])
        assert raw.answer().status == 200
        assert json.loads(raw.answer().body) == {"status": "Healthy"}
        assert raw.has_ended()


def test_the_body_of_a_request_to_upgrade_is_its_body_and_no_request(server: ServerProcess) -> None:
    hidden = b"GET /predictions/nobody HTTP/1.1\r\nHost: x\r\n\r\n"
    with wire(server) as raw:
        raw.send(post(hidden, "Connection: Upgrade", "Upgrade: h2c", path="/ping") + LAST_PING)
        assert [raw.answer().status, raw.answer().status] == [200, 200]
        assert raw.has_ended()


def test_trailers_are_no_headers(server: ServerProcess) -> None:
    body = b"5\r\n[4.0]\r\n0\r\nX-Request-Id: smuggled\r\nX-Request-Timeout-Ms: no number\r\n\r\n"
    with wire(server) as raw:
        answer = raw.send(CHUNKED + body).answer()
    assert answer.status == 200
    assert answer.headers["x-request-id"] != "smuggled"


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/0.9"])
@pytest.mark.parametrize("connection", ["", "Connection: keep-alive\r\n"])
def test_older_protocols_get_one_answer_and_the_end(
    server: ServerProcess, version: str, connection: str
) -> None:
    with wire(server) as raw:
        answer = raw.send(f"GET /ping {version}\r\n{connection}\r\n".encode()).answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert raw.has_ended()


def test_a_head_request_has_the_length_and_no_body(server: ServerProcess) -> None:
    with wire(server) as raw:
        raw.send(PING.replace(b"GET", b"HEAD") + LAST_PING)
        assert int(raw.answer("HEAD").headers["content-length"]) > 0
        assert json.loads(raw.answer().body) == {"status": "Healthy"}


PATHS = [
    "/../../../etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/predictions/../ping",
    "/predictions/linear%2f1.0",
    "/predictions/%252e%252e",
    "/predictions/linear%00",
    "/predictions/%ff%fe",
    "/predictions/%ED%A0%80",
    "/predictions/%0d%0aSet-Cookie:%20a=b",
    "//ping",
    "///",
    "/predictions/" + "a" * 50_000,
    "/predictions/" + "/" * 50_000,
    "/%",
    "/%zz",
    "/models/linear",
]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PATCH", "PROPFIND"])
def test_strange_paths_are_not_found_on_any_port(server: ServerProcess, method: str) -> None:
    for api in server.urls:
        with wire(server, api) as raw:
            for path in PATHS:
                if (api, path) == ("management", "/models/linear"):
                    continue
                answer = raw.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).answer()
                assert answer.status in (404, 405), (api, path)
                assert json.loads(answer.body)["code"] == answer.status
                assert "set-cookie" not in answer.headers


# Sizes.


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(server: ServerProcess) -> None:
    answer = refused(server, POST + b"Content-Length: 1000000000\r\n\r\n")
    assert answer.status == 413


def test_who_sends_it_all_the_same_gets_to_see_why_not(server: ServerProcess) -> None:
    assert refused(server, POST + b"Content-Length: 10000000\r\n\r\n" + bytes(10_000_000)).status == 413


def test_chunks_that_become_too_much_are_refused_before_they_end(server: ServerProcess) -> None:
    peak = Peak(server.pid)
    chunk = b"100000\r\n" + bytes(MIB) + b"\r\n"
    assert refused(server, CHUNKED + chunk * 8).status == 413
    assert peak.growth < 48 * MIB


def test_chunks_of_one_byte_cost_no_more_memory_than_the_body(server: ServerProcess) -> None:
    body = b"[4.0]" + b" " * (4 * MIB)
    data = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    peak = Peak(server.pid)
    with wire(server) as raw:
        assert raw.send(data).answer().status == 200
    # As an object of its own, each would take some forty bytes: 160 MiB.
    assert peak.growth < 64 * MIB


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * 100_000 + b"\r\n",
        b"a" * 100_000 + b": x\r\n",
        b"".join(b"X-%06d: x\r\n" % number for number in range(10_000)),
        b"X: " + b"a" * 5_000_000 + b"\r\n",
    ],
    ids=["value", "name", "number", "megabytes"],
)
def test_headers_that_are_too_large_are_refused(server: ServerProcess, headers: bytes) -> None:
    assert refused(server, b"GET /ping HTTP/1.1\r\n" + headers + b"\r\n").status == 431


def test_a_path_that_is_too_long_is_refused(server: ServerProcess) -> None:
    assert refused(server, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n").status == 431


@pytest.mark.parametrize(
    "trailers", [b"X: " + b"a" * 5_000_000, b"X: y\r\n" * 1_000_000], ids=["one", "many"]
)
def test_trailers_without_end_are_refused(server: ServerProcess, trailers: bytes) -> None:
    peak = Peak(server.pid)
    assert refused(server, CHUNKED + b"5\r\n[4.0]\r\n0\r\n" + trailers).status == 431
    assert peak.growth < 16 * MIB


# Expect.


def test_a_client_that_asks_first_is_told_to_go_on(server: ServerProcess) -> None:
    with wire(server) as raw:
        head, body = post(b"[4.0]", "Expect: 100-continue")[:-5], b"[4.0]"
        assert raw.send(head).answer().status == 100
        assert raw.send(body + head).answer().status == 200
        assert raw.answer().status == 100
        assert raw.send(body).answer().status == 200


def test_one_that_asks_behind_a_request_is_told_after_that_one_s_answer(server: ServerProcess) -> None:
    with wire(server) as raw:
        raw.send(odd(sleep=0.3) + post(b"[4.0]", "Expect: 100-continue")[:-5])
        assert [raw.answer().status, raw.answer().status] == [200, 100]
        assert raw.send(b"[4.0]").answer().status == 200


def test_a_body_that_is_too_large_is_not_asked_for(server: ServerProcess) -> None:
    request = POST + b"Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n"
    assert refused(server, request).status == 413


def test_other_expectations_fail_and_http_1_0_has_none(server: ServerProcess) -> None:
    assert refused(server, POST + b"Expect: 200-maybe\r\n\r\n").status == 417
    with wire(server) as raw:
        raw.send(b"POST /ping HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx")
        assert raw.answer().status == 200


# Requests sent ahead.


def test_requests_sent_ahead_are_answered_in_their_order(server: ServerProcess) -> None:
    numbers = list(range(20))
    with wire(server) as raw:
        raw.send(b"".join(odd(text=str(n), sleep=0.02 * (n % 3 == 0)) + PING for n in numbers))
        for number in numbers:
            assert raw.answer().body.decode() == str(number)
            assert json.loads(raw.answer().body) == {"status": "Healthy"}


def test_more_of_them_than_fit_into_any_buffer_are_answered_all(server: ServerProcess) -> None:
    count, unsent = 5_000, b"".join(post(b"[%d]" % n) for n in range(5_000))
    with wire(server) as raw:
        # One thread does both, as a client must that sends more than the other side takes in.
        raw.socket.setblocking(False)
        answered, tail = 0, b""
        with selectors.DefaultSelector() as both:
            both.register(raw.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while answered < count:
                ready = both.select(PATIENCE_S)
                assert ready, "the server neither reads nor answers"
                events = ready[0][1]
                if events & selectors.EVENT_READ:
                    tail += raw.socket.recv(1 << 18)
                    *whole, tail = tail.split(b"HTTP/1.1 200 OK")
                    answered += len(whole)
                if events & selectors.EVENT_WRITE and unsent:
                    unsent = unsent[raw.socket.send(unsent) :]
                if not unsent:
                    both.modify(raw.socket, selectors.EVENT_READ)


@pytest.mark.parametrize(
    ("behind", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (POST + b"Content-Length: 1000000000\r\n\r\n", 413),
        (b"GET /ping HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    ],
    ids=["garbage", "too large", "too long"],
)
def test_what_is_refused_takes_no_other_request_s_answer(
    server: ServerProcess, behind: bytes, status: int
) -> None:
    with wire(server) as raw:
        raw.send(odd(text="first", sleep=0.3) + odd(text="second") + behind)
        assert raw.answer().body == b"first"
        assert raw.answer().body == b"second"
        assert raw.answer().status == status
        assert raw.has_ended()


@pytest.mark.parametrize("first", [1_000, 40_000, 63_000, 70_000])
def test_headers_are_measured_wherever_they_are_cut(server: ServerProcess, first: int) -> None:
    long = b"GET /ping HTTP/1.1\r\nX: " + b"a" * 80_000 + b"\r\n\r\n"
    with wire(server) as raw:
        raw.send(b"GET /ping HTTP/1.1\r\n\r\n" + long[:first])
        assert raw.answer().status == 200
        raw.send(long[first:])
        assert raw.answer().status == 431
        assert raw.has_ended()


def test_nothing_after_the_last_request_is_read(server: ServerProcess) -> None:
    with wire(server) as raw:
        raw.send(odd(text="last").replace(b"Host: x", b"Connection: close") + odd(text="more") + b"garbage")
        assert raw.answer().body == b"last"
        assert raw.has_ended()


def test_who_sends_ahead_and_reads_nothing_is_not_kept_in_memory(impatient: ServerProcess) -> None:
    peak = Peak(impatient.pid)
    with wire(impatient) as raw:
        raw.socket.settimeout(0.5)
        with pytest.raises((TimeoutError, ConnectionError)):
            raw.send(b"GET /api-description HTTP/1.1\r\n\r\n" * 2_000_000)
        assert is_cut_off(impatient, raw)
    assert peak.growth < 64 * MIB


def is_cut_off(server: ServerProcess, raw: Wire) -> bool:
    """Whether the server has no such connection any more, or soon has not."""
    port = raw.socket.getsockname()[1]
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = psutil.Process(server.pid).net_connections("tcp")
        if not any(connection.raddr and connection.raddr.port == port for connection in found):
            return True
        time.sleep(0.05)
    return False


# Time.

UNFINISHED = {
    "headers": b"GET /ping HTTP/1.1\r\nHost: ",
    "a first letter": b"G",
    "a body": POST + b"Content-Length: 5\r\n\r\n[4",
    "a body of which nothing comes": POST + b"Content-Length: 5\r\n\r\n",
    "chunks": CHUNKED + b"3\r\n[4.\r\n",
    "trailers": CHUNKED + b"5\r\n[4.0]\r\n0\r\nX: y\r\n",
}


@pytest.mark.parametrize("before", [b"", PING], ids=["first", "second"])
@pytest.mark.parametrize("case", UNFINISHED)
def test_a_request_that_does_not_go_on_is_given_up(
    impatient: ServerProcess, case: str, before: bytes
) -> None:
    with wire(impatient) as raw:
        raw.send(before + UNFINISHED[case])
        if before:
            assert raw.answer().status == 200
        assert raw.answer().status == 408
        assert raw.has_ended()


@pytest.mark.parametrize("case", ["headers", "a body"])
def test_a_drop_now_and_then_does_not_keep_it_alive(impatient: ServerProcess, case: str) -> None:
    begin = UNFINISHED[case].replace(b"Content-Length: 5", b"Content-Length: 5000")
    with wire(impatient) as raw:
        raw.send(begin)
        raw.socket.settimeout(0.1)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            raw.try_to_send(b"1")
            try:
                if raw.socket.recv(12, socket.MSG_PEEK):
                    break
            except TimeoutError:
                continue
        assert raw.answer().status == 408


def test_time_that_a_request_waits_for_another_s_answer_is_not_its_own(impatient: ServerProcess) -> None:
    last = odd(text="third")
    with wire(impatient) as raw:
        raw.send(odd(text="first", sleep=2.5) + odd(text="second") + last[:-5])
        assert raw.answer().body == b"first"
        assert raw.answer().body == b"second"
        assert raw.send(last[-5:]).answer().body == b"third"


def test_an_idle_connection_is_closed_without_a_word(impatient: ServerProcess) -> None:
    with wire(impatient) as fresh, wire(impatient) as used:
        assert used.send(PING).answer().status == 200
        assert fresh.has_ended()
        assert used.has_ended()


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_client_that_leaves_its_answer_is_cut_off(impatient: ServerProcess, connection: str) -> None:
    request = odd(text="x" * 1000, times=40_000).replace(b"Host: x", f"Connection: {connection}".encode())
    with wire(impatient) as raw:
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.send(request)
        assert is_cut_off(impatient, raw)


def test_a_client_that_takes_its_answer_slowly_gets_it_all(impatient: ServerProcess) -> None:
    size = 16_000_000
    with wire(impatient) as raw:
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        raw.send(odd(text="x" * 1000, times=size // 1000))
        received = 0
        began = time.monotonic()
        while received < size:
            got = raw.socket.recv(1 << 18)
            assert got, f"cut off after {received} bytes"
            received += len(got)
            # For longer than body_timeout, at far more than min_body_rate.
            if time.monotonic() - began < 3:
                time.sleep(0.01)


def test_there_are_as_many_connections_as_there_may_be(impatient: ServerProcess) -> None:
    held = [wire(impatient) for _ in range(20)]
    for raw in held:
        assert raw.send(PING).answer().status == 200
    with wire(impatient) as another:
        answer = another.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert another.has_ended()
    assert held[0].send(PING).answer().status == 200
    for raw in held:
        raw.socket.close()
    deadline = time.monotonic() + PATIENCE_S
    while not is_answered(impatient):
        assert time.monotonic() < deadline, "places that were left are not had again"


# Clients that go.


def reset(raw: Wire) -> None:
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.socket.close()


LEAVING = {
    "nothing": b"",
    "half a header": b"GET /pi",
    "half a body": VALID[:-2],
    "a whole request": VALID,
    "a slow request": odd(sleep=0.05),
    "requests ahead": odd(sleep=0.05) * 3 + VALID[:-2],
    "a stream": odd(pieces=50),
    "a large answer": odd(text="x" * 1000, times=5_000),
}


@pytest.mark.parametrize("case", LEAVING)
@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_a_client_that_goes_leaves_nothing_behind(server: ServerProcess, case: str, how: str) -> None:
    gone = []
    for _ in range(10):
        raw = wire(server).send(LEAVING[case])
        if how == "half":
            raw.socket.shutdown(socket.SHUT_WR)
        elif how == "reset":
            reset(raw)
            continue
        gone.append(raw)
    for raw in gone:
        raw.socket.close()
    deadline = time.monotonic() + PATIENCE_S
    while len(psutil.Process(server.pid).net_connections("tcp")) > 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(psutil.Process(server.pid).net_connections("tcp")) == 3  # Those that it listens on.


def test_bodies_of_those_who_went_do_not_stay(server: ServerProcess) -> None:
    peak = Peak(server.pid)
    for _ in range(100):
        reset(wire(server).send(POST + b"Content-Length: 6000000\r\n\r\n" + bytes(5_900_000)))
    assert peak.growth < 150 * MIB


def test_a_thousand_idle_connections_disturb_nobody(server: ServerProcess) -> None:
    peak = Peak(server.pid)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    idle = [wire(server) for _ in range(min(1000, soft // 2))]
    for raw in idle[::2]:
        raw.send(b"GET /ping HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1000)
    with wire(server) as raw:
        assert raw.send(VALID).answer().status == 200
    for raw in idle:
        raw.socket.close()
    assert peak.growth < 64 * MIB


def test_descriptors_that_run_out_are_had_again(server: ServerProcess) -> None:
    process = psutil.Process(server.pid)
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (process.num_fds() + 10, hard))
    held = []
    try:
        for _ in range(40):
            held.append(wire(server))
        assert held[0].send(PING).answer().status == 200
        for raw in held:
            raw.socket.close()
        deadline = time.monotonic() + PATIENCE_S
        while not is_answered(server):
            assert time.monotonic() < deadline, "no connection is accepted any more"
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))


# Answers: a handler must not be able to end one early or begin another.


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_by_its_status_is_sent_none(server: ServerProcess, status: int) -> None:
    with wire(server) as raw:
        raw.send(odd(status=status, text="a body") + LAST_PING)
        assert raw.answer().status == status
        assert json.loads(raw.answer().body) == {"status": "Healthy"}


@pytest.mark.parametrize(
    "asked",
    [
        {"headers": {"X-A": "b\r\nInjected: yes"}},
        {"headers": {"X-A": "b\r\n\r\nHTTP/1.1 200 OK\r\nInjected: yes\r\n\r\n"}},
        {"headers": {"X-A\r\nInjected": "yes"}},
        {"headers": {"X-A": "b\nInjected: yes"}},
        {"headers": {"X-A": "b\0c"}},
        {"headers": {"Content-Length": "1", "Transfer-Encoding": "chunked", "Connection": "close"}},
        {"headers": {"content-length ": "1"}},
        {"headers": {"X-A": "é\u20ac"}},
        {"type": "text/plain\r\nInjected: yes"},
        {"headers": {"Content-Type": "text/plain\r\nInjected: yes\r\n\r\n"}},
    ],
    ids=str,
)
def test_headers_of_a_handler_cannot_add_others(server: ServerProcess, asked: dict[str, object]) -> None:
    with wire(server) as raw:
        raw.send(odd(**asked, text="whole") + LAST_PING)
        answer = raw.answer()
        assert (answer.status, answer.body) == (200, b"whole")
        assert "injected" not in {name.lower() for name in answer.headers}
        assert json.loads(raw.answer().body) == {"status": "Healthy"}


def test_a_stream_is_chunks_to_new_clients_and_ends_with_the_connection_for_old_ones(
    server: ServerProcess,
) -> None:
    request = odd(pieces=3, text="end")
    with wire(server) as raw:
        raw.send(request + LAST_PING)
        assert raw.answer().body == b"piecepiecepieceend"
        assert raw.answer().status == 200
    with wire(server) as raw:
        answer = raw.send(request.replace(b"HTTP/1.1", b"HTTP/1.0")).answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.body == b"piecepiecepieceend"


def test_a_refusal_after_a_stream_is_an_answer(server: ServerProcess) -> None:
    with wire(server) as raw:
        assert raw.send(odd(pieces=3)).answer().status == 200
        assert raw.send(b"garbage\r\n\r\n").answer().status == 400


# Forms.

PART = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'

FORMS = {
    "no boundary": ("multipart/form-data", PART + b"--b--\r\n"),
    "an empty boundary": ('multipart/form-data; boundary=""', PART),
    "a boundary of 60 kB": ("multipart/form-data; boundary=" + "b" * 60_000, PART),
    "another boundary": ("multipart/form-data; boundary=c", PART + b"--b--\r\n"),
    "nothing": ("multipart/form-data; boundary=b", b""),
    "no end": ("multipart/form-data; boundary=b", PART),
    "no name": ("multipart/form-data; boundary=b", b"--b\r\nX: y\r\n\r\nz\r\n--b--\r\n"),
    "no headers": ("multipart/form-data; boundary=b", b"--b\r\n\r\nz\r\n--b--\r\n"),
    "a header without end": ("multipart/form-data; boundary=b", b"--b\r\n" + b"a" * 5_000_000),
    "headers without end": ("multipart/form-data; boundary=b", b"--b\r\n" + b"a: b\r\n" * 1_000_000),
    "line feeds": ("multipart/form-data; boundary=b", PART.replace(b"\r", b"") + b"--b--\n"),
    "parts without end": ("multipart/form-data; boundary=b", PART * 5_000 + b"--b--\r\n"),
    "fields without end": ("application/x-www-form-urlencoded", b"a=1&" * 1_000_000),
}


@pytest.mark.parametrize("case", FORMS)
def test_forms_that_cannot_be_read_are_refused(server: ServerProcess, case: str) -> None:
    kind, body = FORMS[case]
    with wire(server) as raw:
        answer = raw.send(post(body).replace(b"application/json", kind.encode(), 1)).answer()
        assert answer.status == 400, answer.body
        assert json.loads(answer.body)["type"] == "BadRequestException"
        # The next one is read from where it begins.
        assert raw.send(VALID).answer().status == 200


# Anything at all.


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
                assert answer.status < 500 or answer.status == 501, data
                answers += 1
            assert answers, data
            raw.socket.close()
