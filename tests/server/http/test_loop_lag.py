"""No body within the size limit holds the event loop up: others are answered meanwhile."""

from __future__ import annotations

import pytest

from tests.server.http.connections import wire
from tests.server.http.raw_requests import PING, post
from tests.server.loop_lag import holds_the_loop
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server

SIZE = 6_500_000
"""Just under `max_request_size`."""

FORM = "application/x-www-form-urlencoded"
PART = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n'


def filled(with_: bytes, size: int = SIZE) -> bytes:
    return with_ * (size // len(with_))


def parts(content: bytes) -> bytes:
    return PART + content + b"\r\n--b--\r\n"


FORMS = {
    "percent signs": (FORM, filled(b"%")),
    "escapes": (FORM, filled(b"%20")),
    "escaped names": (FORM, filled(b"%20" * 2000 + b"&")),
    "plus signs": (FORM, filled(b"+")),
    "ampersands": (FORM, filled(b"&")),
    "many fields": (FORM, b"&".join(b"%d=" % n + b"%20" * 2000 for n in range(999))),
    "half boundaries": ("multipart/form-data; boundary=b", parts(filled(b"\r\n-"))),
    "nearly boundaries": ("multipart/form-data; boundary=b", parts(filled(b"\r\n--c"))),
    "line ends": ("multipart/form-data; boundary=b", parts(filled(b"\r\n"))),
    "many parts": ("multipart/form-data; boundary=b", filled(PART + b"y\r\n") + b"--b--\r\n"),
}


@pytest.mark.parametrize("case", FORMS)
def test_no_form_holds_the_loop(server: ServerProcess, case: str) -> None:
    kind, body = FORMS[case]
    request = post(body, path="/predictions/linear").replace(b"application/json", kind.encode(), 1)

    def ask() -> None:
        with wire(server) as raw:
            assert raw.send(request).answer().status < 600
            assert raw.send(PING).answer().status == 200

    assert not holds_the_loop(server.urls["metrics"], ask)


def asked(
    data: bytes, shape: bytes = b"[1,2]", datatype: bytes = b"FP32", name: bytes = b"x", more: bytes = b""
) -> bytes:
    """An inference request with one input."""
    return b'{"inputs":[{"name":"%b","shape":%b,"datatype":"%b","data":%b}]%b}' % (
        name,
        shape,
        datatype,
        data,
        more,
    )


def flat(value: bytes, datatype: bytes = b"FP32", size: int = SIZE) -> bytes:
    """As many as fit; in one dimension the model refuses them, in two it answers."""
    count = size // (len(value) + 1)
    shape = b"[%d]" % count if size == SIZE else b"[%d,1]" % count
    return asked(b"[" + b",".join([value] * count) + b"]", shape, datatype)


TWICE = [b"a" * 6000 + b"%03d" % min(n, 998) for n in range(1000)]

INFERENCE = {
    "empty lists": asked(b"[" + filled(b"[],") + b"[]]"),
    "lists of one": asked(b"[[" + b",".join([b"[1]"] * (SIZE // 4)) + b"]]", b"[1,%d,1]" % (SIZE // 4)),
    "deep lists": asked(b"[" + filled(b"[[[1]]],") + b"1]"),
    "objects": asked(b"[" + filled(b"{},") + b"1]"),
    "text": asked(b"[" + filled(b'"",') + b"1]"),
    "floats": flat(b"0.123"),
    "whole numbers": flat(b"1", b"INT64"),
    "floats, with as many in the answer": flat(b"0.123", size=SIZE // 8),
    "truths": flat(b"true", b"BOOL"),
    "one number": asked(b"[" + filled(b"1") + b"]", b"[1]"),
    "one fraction": asked(b"[0." + filled(b"1") + b"]", b"[1]"),
    "spaces": asked(b"[" + filled(b" ") + b"1]", b"[1]"),
    "a shape": asked(b"[1]", b"[" + filled(b"1,") + b"1]"),
    "a name": asked(b"[1]", b"[1]", name=filled(b"\\u0001")),
    "a datatype": asked(b"[1]", b"[1]", datatype=filled(b"\\u0001")),
    "parameters": asked(b"[1,2]", more=b',"parameters":{"a":[' + filled(b"[],") + b"1]}"),
    "many parameters": asked(
        b"[1,2]", more=b',"parameters":{' + b",".join(b'"%d":1' % n for n in range(SIZE // 12)) + b"}"
    ),
    "an unknown field": asked(b"[1,2]", more=b',"zzz":[' + filled(b"[],") + b"1]"),
    "inputs": b'{"inputs":[' + filled(b'{"name":"a","shape":[],"datatype":""},') + b"1]}",
    "outputs": asked(b"[1,2]", more=b',"outputs":[' + filled(b'{"name":"a"},') + b"1]"),
    "long names": b'{"inputs":['
    + b",".join(b'{"name":"%b","shape":[1],"datatype":"F","data":[1]}' % name for name in TWICE)
    + b"]}",
}


@pytest.mark.parametrize("case", INFERENCE)
def test_no_inference_request_holds_the_loop(server: ServerProcess, case: str) -> None:
    request = post(INFERENCE[case], path="/v2/models/linear/infer")

    def ask() -> None:
        with wire(server) as raw:
            assert raw.send(request).answer().status < 500
            assert raw.send(PING).answer().status == 200

    assert not holds_the_loop(server.urls["metrics"], ask)
