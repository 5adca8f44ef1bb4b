"""Compressed bodies of requests, and compressed answers."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import pytest

from tests.server.http.connections import MIB, Peak, wire
from tests.server.http.raw_requests import LAST_PING, POST, VALID, odd, post
from tests.server.loop_lag import holds_the_loop
from tests.server.wire import Answer
from torchport.server.errors import ServiceUnavailable
from torchport.server.http.body_memory import BodyMemory
from torchport.server.http.compressing import MIN_SIZE, accepted_encoding
from torchport.server.http.decompressing import decompress
from torchport.server.http.message import HttpRequest
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server

BODY = b"[4.0]"


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def ask(server: ServerProcess, request: bytes, api: str = "inference") -> Answer:
    with wire(server, api) as raw:
        answer = raw.send(request).answer()
        # The connection goes on.
        assert raw.send(LAST_PING).answer().status in (200, 404)
    return answer


def encoded(body: bytes, *encodings: str, path: str = "/predictions/linear") -> bytes:
    return post(body, *(f"Content-Encoding: {encoding}" for encoding in encodings), path=path)


READ = {
    "gzip": (gzip.compress(BODY), ["gzip"]),
    "x-gzip": (gzip.compress(BODY), ["X-GZip"]),
    "deflate": (zlib.compress(BODY), ["deflate"]),
    "deflate without its frame": (raw_deflate(BODY), ["deflate"]),
    "identity": (BODY, ["identity"]),
    "two members": (gzip.compress(BODY[:2]) + gzip.compress(BODY[2:]), ["gzip"]),
    "twice": (gzip.compress(zlib.compress(BODY)), ["deflate, gzip"]),
    "twice, in two headers": (gzip.compress(zlib.compress(BODY)), ["deflate", "gzip"]),
    "large": (gzip.compress(BODY + b" " * 6_000_000), ["gzip"]),
}


@pytest.mark.parametrize("case", READ)
def test_compressed_bodies_are_read(server: ServerProcess, case: str) -> None:
    body, encodings = READ[case]
    expected = ask(server, VALID)
    answer = ask(server, encoded(body, *encodings))
    assert (answer.status, answer.body) == (200, expected.body)


def test_a_compressed_body_may_come_in_chunks(server: ServerProcess) -> None:
    body = gzip.compress(BODY)
    head = (
        POST
        + b"Content-Type: application/json\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    answer = ask(server, head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    assert (answer.status, json.loads(answer.body)) == (200, pytest.approx([14.165], abs=0.1))


def test_a_header_without_a_body_says_nothing(server: ServerProcess) -> None:
    answer = ask(server, b"GET /ping HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: br\r\n\r\n")
    assert answer.status == 200


BROKEN = {
    "no gzip": (BODY, "gzip", 400),
    "no deflate": (b"\xff\xff\xff", "deflate", 400),
    "cut off": (gzip.compress(BODY)[:-9], "gzip", 400),
    "without its end": (gzip.compress(BODY)[:-2], "gzip", 400),
    "a wrong checksum": (gzip.compress(BODY)[:-8] + bytes(8), "gzip", 400),
    "more behind it": (gzip.compress(BODY) + b"x", "gzip", 400),
    "more behind deflate": (zlib.compress(BODY) + b"x", "deflate", 400),
    "millions of empty members": (gzip.compress(b"") * 100_000, "gzip", 400),
    "unknown": (BODY, "br", 415),
    "unknown behind a known one": (gzip.compress(BODY), "br, gzip", 415),
    "too many": (BODY, "gzip, gzip, gzip, gzip", 400),
    "a bomb": (gzip.compress(bytes(32 * MIB), 1), "gzip", 413),
    "a bomb in a bomb": (gzip.compress(gzip.compress(bytes(32 * MIB), 1)), "gzip, gzip", 413),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_refused_with_the_reason(server: ServerProcess, case: str) -> None:
    body, encoding, status = BROKEN[case]
    peak = Peak(server.pid)
    answer = ask(server, encoded(body, encoding))
    said = json.loads(answer.body)
    assert (answer.status, said["code"]) == (status, status)
    if status == 415:
        assert answer.headers["accept-encoding"] == "gzip, deflate"
        assert "gzip, deflate" in said["message"]
    else:
        assert ("max_request_size" if status == 413 else "ncoding") in said["message"]
    assert peak.growth < 48 * MIB


def test_a_refusal_under_v2_has_the_protocols_form(server: ServerProcess) -> None:
    answer = ask(server, encoded(BODY, "br", path="/v2/models/linear/infer"))
    assert (answer.status, list(json.loads(answer.body))) == (415, ["error"])


def test_registrations_may_be_compressed(server: ServerProcess) -> None:
    body = gzip.compress(b'{"url": "not-there.mar"}')
    plain = ask(server, post(b'{"url": "not-there.mar"}', path="/models"), "management")
    answer = ask(server, encoded(body, "gzip", path="/models"), "management")
    assert (answer.status, answer.body) == (plain.status, plain.body)


def test_tensors_behind_json_are_measured_when_decompressed(server: ServerProcess) -> None:
    given = {
        "name": "x",
        "shape": [50_000, 1],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 200_000},
    }
    head = json.dumps({"inputs": [given]}).encode()
    more = ["Content-Encoding: gzip", f"Inference-Header-Content-Length: {len(head)}"]
    request = post(gzip.compress(head + bytes(200_000), 0), *more, path="/v2/models/linear/infer")
    answer = ask(server, request)
    assert (answer.status, json.loads(answer.body)["outputs"][0]["shape"]) == (200, [50_000, 1])


def test_what_a_body_grows_to_is_counted_in_the_memory_of_all() -> None:
    memory = BodyMemory(MIB)

    def request() -> HttpRequest:
        made = HttpRequest(memory=memory)
        made.add_header(b"Content-Encoding", b"gzip")
        made.body = gzip.compress(bytes(700_000))
        return made

    first, second = request(), request()
    asyncio.run(decompress(first, 10 * MIB))
    assert (len(first.body), memory.used) == (700_000, 700_000)
    with pytest.raises(ServiceUnavailable, match="max_request_memory"):
        asyncio.run(decompress(second, 10 * MIB))
    assert memory.used == 700_000
    first.held = None
    assert memory.used == 0


def test_no_compressed_body_holds_the_loop(server: ServerProcess) -> None:
    requests = [
        encoded(gzip.compress(BODY + b" " * 6_500_000), "gzip"),
        encoded(gzip.compress(b"") * 100_000, "gzip"),
    ]
    assert not holds_the_loop(server.urls["metrics"], lambda: [ask(server, each) for each in requests])


def accepting(request: bytes, encoding: str) -> bytes:
    return request.replace(b"\r\n", f"\r\nAccept-Encoding: {encoding}\r\n".encode(), 1)


def decompressed(answer: Answer) -> bytes:
    bits = {"gzip": 31, "deflate": 15}[answer.headers["content-encoding"]]
    return zlib.decompress(answer.body, bits)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("times", [5_000, 5_000_000])
def test_large_texts_are_compressed_for_who_asks(server: ServerProcess, encoding: str, times: int) -> None:
    request = odd(text="ab", times=times, type="text/plain")
    answer = ask(server, accepting(request, f"br, {encoding}"))
    assert (answer.headers["content-encoding"], answer.headers["vary"]) == (encoding, "Accept-Encoding")
    assert len(answer.body) < times
    assert decompressed(answer) == b"ab" * times
    plain = ask(server, request)
    assert (plain.body, plain.headers["vary"]) == (b"ab" * times, "Accept-Encoding")
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize(
    "asked",
    [
        {"text": "a", "times": MIN_SIZE - 1, "type": "text/plain"},
        {"text": "a", "times": 10_000, "type": "image/png"},
        {"text": "a", "times": 10_000, "type": "text/plain", "headers": {"content-encoding": "br"}},
    ],
    ids=["small", "a picture", "encoded already"],
)
def test_what_is_not_worth_it_is_sent_as_it_is(server: ServerProcess, asked: dict) -> None:
    answer = ask(server, accepting(odd(**asked), "gzip"))
    assert answer.body == asked["text"].encode() * asked["times"]
    assert answer.headers.get("content-encoding") in (None, "br")
    assert "vary" not in answer.headers


@pytest.mark.parametrize(("accepted", "is_asked"), [("gzip", True), ("gzip, deflate", False)])
def test_bytes_are_compressed_for_who_names_one_encoding(
    server: ServerProcess, accepted: str, is_asked: bool
) -> None:
    body = (
        b'{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[1000,1],"datatype":"FP32",'
        b'"data":[%b]}]}' % b",".join([b"1"] * 1000)
    )
    request = post(body, path="/v2/models/linear/infer")
    plain = ask(server, request)
    answer = ask(server, accepting(request, accepted))
    assert ("content-encoding" in answer.headers) == is_asked
    assert (decompressed(answer) if is_asked else answer.body) == plain.body
    name = "inference-header-content-length"
    assert answer.headers[name] == plain.headers[name]


def test_head_says_of_the_answer_what_get_does(server: ServerProcess) -> None:
    get = accepting(b"GET /api-description HTTP/1.1\r\nHost: localhost\r\n\r\n", "gzip")
    with wire(server) as raw:
        full = raw.send(get).answer()
        head = raw.send(get.replace(b"GET", b"HEAD", 1)).answer("HEAD")
    names = ("content-encoding", "content-length", "vary", "content-type")
    assert [head.headers[name] for name in names] == [full.headers[name] for name in names]
    assert json.loads(decompressed(full))["openapi"]


def test_metrics_are_compressed_as_prometheus_asks(server: ServerProcess) -> None:
    get = accepting(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "gzip")
    answer = ask(server, get, "metrics")
    assert b"# TYPE" in decompressed(answer)


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        (b"gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"gzip;q=0.1, deflate; q=0.5", "deflate"),
        (b"gzip;q=0", ""),
        (b"*", "gzip"),
        (b"*;q=0, deflate", "deflate"),
        (b"gzip;q=0, *", "deflate"),
        (b"identity", ""),
        (b"identity;q=1, gzip;q=0.5", ""),
        (b"br, zstd", ""),
        (b"gzip;q=nonsense", ""),
        (b",;=", ""),
    ],
)
def test_what_a_client_accepts(header: bytes, encoding: str) -> None:
    assert accepted_encoding(header) == encoding
