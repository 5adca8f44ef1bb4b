"""Forms that cannot be read are refused."""

from __future__ import annotations

import json

import pytest

from tests.server.http.connections import wire
from tests.server.http.raw_requests import VALID, post
from torchport.targets.torchport_serve import ServerProcess

pytestmark = pytest.mark.server

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
