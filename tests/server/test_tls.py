"""TLS on the APIs, and clients that are known by their certificates."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from tests.server.certificates import tls_settings
from tests.server.guarded import APIS, Guarded, addresses, guarded_model, message_of_refusal
from tests.server.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.server


def tls(certificates: Path, **more: str) -> dict[str, str]:
    return addresses("https") | tls_settings(certificates) | more


@pytest.fixture(scope="module")
def encrypted(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    limits = {"header_timeout": "1", "body_timeout": "2", "keep_alive_timeout": "2"}
    with guarded_model(tmp_path_factory.mktemp("encrypted"), tls(certificates, **limits)) as server:
        yield server


def connected(server: Guarded, certificates: Path, **versions: ssl.TLSVersion) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    for name, version in versions.items():
        setattr(context, name, version)
    where = urlsplit(server.urls["inference"])
    raw = socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S)
    return context.wrap_socket(raw, server_hostname="localhost")


def test_every_api_speaks_tls(encrypted: Guarded, certificates: Path) -> None:
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(certificates / "ca.pem")
        assert session.get(f"{encrypted.urls['inference']}/ping", timeout=PATIENCE_S).status_code == 200
        assert session.get(f"{encrypted.urls['management']}/models", timeout=PATIENCE_S).status_code == 200
        assert session.get(f"{encrypted.urls['metrics']}/metrics", timeout=PATIENCE_S).status_code == 200
        answer = session.post(
            f"{encrypted.urls['inference']}/predictions/model", data=bytes(5_000_000), timeout=PATIENCE_S
        )
        assert answer.content == b"answer"
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{encrypted.urls['inference']}/ping", timeout=PATIENCE_S)


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_of_today_are_spoken(encrypted: Guarded, certificates: Path, newest: ssl.TLSVersion) -> None:
    with connected(encrypted, certificates, maximum_version=newest) as wire:
        wire.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert wire.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_versions_of_yesterday_are_not(encrypted: Guarded, certificates: Path) -> None:
    old = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        connected(encrypted, certificates, minimum_version=old, maximum_version=old)


@pytest.mark.parametrize(
    "data",
    [b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", b"\x16\x03\x01", bytes(5000)],
    ids=["plain", "nothing", "half a hello", "zeros"],
)
def test_who_does_not_speak_it_is_cut_off(encrypted: Guarded, data: bytes) -> None:
    """At once, or when the time for a handshake is over."""
    where = urlsplit(encrypted.urls["inference"])
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S) as raw:
        raw.sendall(data)
        with contextlib.suppress(ConnectionError):
            while got := raw.recv(1000):
                assert b"HTTP" not in got


def test_time_and_size_are_bounded_inside_of_it_too(encrypted: Guarded, certificates: Path) -> None:
    with connected(encrypted, certificates) as wire:
        wire.sendall(b"GET /ping HTTP/1.1\r\nX: ")
        assert wire.recv(1000).startswith(b"HTTP/1.1 408 ")
    with connected(encrypted, certificates) as wire:
        wire.sendall(
            b"POST /predictions/model HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        )
        assert wire.recv(1000).startswith(b"HTTP/1.1 413 ")
    with connected(encrypted, certificates) as wire:
        wire.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 20:
            received += wire.recv(10_000)


def test_an_answer_that_is_not_taken_is_given_up_inside_of_it_too(
    encrypted: Guarded, certificates: Path
) -> None:
    with connected(encrypted, certificates) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.sendall(b"POST /predictions/model HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nlarge")
        port = wire.getsockname()[1]
        process = psutil.Process(encrypted.process.pid)
        wait_until(lambda: not any(c.raddr and c.raddr.port == port for c in process.net_connections("tcp")))


def test_clients_are_known_by_their_certificates(certificates: Path, tmp_path: Path) -> None:
    with guarded_model(
        tmp_path / "run", tls(certificates, client_ca_file=str(certificates / "ca.pem"))
    ) as server:
        with requests.Session() as session:
            session.trust_env, session.verify = False, str(certificates / "ca.pem")
            session.cert = (str(certificates / "client.pem"), str(certificates / "client.key"))
            for api, path in (("inference", "/ping"), ("management", "/models"), ("metrics", "/metrics")):
                assert session.get(server.urls[api] + path, timeout=PATIENCE_S).status_code == 200
        for cert in (None, (str(certificates / "stranger.pem"), str(certificates / "stranger.key"))):
            for api in APIS:
                # With TLS 1.3 a client learns of it when it reads: that may look like a reset.
                with pytest.raises(requests.exceptions.ConnectionError):
                    requests.get(
                        server.urls[api], verify=str(certificates / "ca.pem"), cert=cert, timeout=PATIENCE_S
                    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"certificate_file": "missing.pem"}, "cannot be read: [Errno 2]"),
        ({"private_key_file": "other.key"}, "cannot be read: [X509: KEY_VALUES_MISMATCH]"),
        (
            {"private_key_file": "locked.key"},
            "certificate_file, private_key_file or client_ca_file cannot be",
        ),
        (
            {"private_key_file": "server.pem"},
            "certificate_file, private_key_file or client_ca_file cannot be",
        ),
        ({"client_ca_file": "server.key"}, "certificate_file, private_key_file or client_ca_file cannot be"),
        ({"client_ca_file": "missing.pem"}, "cannot be read: [Errno 2]"),
    ],
    ids=str,
)
def test_certificates_that_are_none(
    certificates: Path, tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    settings = tls(certificates) | {key: str(certificates / name) for key, name in change.items()}
    assert reason in message_of_refusal(tmp_path, settings)


def test_what_tls_needs_is_asked_for(certificates: Path, tmp_path: Path) -> None:
    said = message_of_refusal(tmp_path, addresses("https"))
    assert "https:// needs certificate_file and private_key_file" in said
    said = message_of_refusal(tmp_path, {"client_ca_file": str(certificates / "ca.pem")})
    assert "the addresses are to be https://" in said
