"""Who may ask: TorchServe's tokens, TLS, certificates of clients, and addresses that strangers reach."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from tests.server.archives import write_archive
from torchport.errors import ServerError, TorchportError
from torchport.server.access import Access, KeyKind
from torchport.server.errors import InvalidKey
from torchport.server.settings import settings_from
from torchport.store import read_json

PATIENCE_S = 60.0
APIS = ("inference", "management", "metrics")

HANDLER = """
    def handle(data, context):
        return data and [b"x" * 6_000_000 if row["body"] == b"large" else "answer" for row in data]
"""


@dataclass
class Served:
    urls: dict[str, str]
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def key_file(self) -> Path:
        return self.folder / "key_file.json"

    def keys(self) -> dict[str, str]:
        return {kind: entry["key"] for kind, entry in json.loads(self.key_file.read_text()).items()}

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ask(self, api: str, path: str, key: str | None = None, method: str = "GET", **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return requests.request(method, self.urls[api] + path, headers=headers, timeout=PATIENCE_S, **more)


def command(folder: Path, settings: dict[str, str], *arguments: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    addresses = {f"{api}_address": "http://127.0.0.1:0" for api in APIS}
    written = addresses | {"key_file": str(folder / "key_file.json")} | settings
    config = folder / "config.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in written.items()))
    serve = [sys.executable, "-m", "torchport", "serve", "--ts-config", str(config), "--run", str(folder)]
    return [*serve, "--ncs", "--no-grpc", *arguments]


@contextlib.contextmanager
def served(folder: Path, settings: dict[str, str]) -> Iterator[Served]:
    """A server once its model is loaded, whatever it takes to be let in."""
    write_archive(folder / "store", "model", HANDLER)
    settings = {"model_store": str(folder / "store"), "default_workers_per_model": "1"} | settings
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command(folder, settings), stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not (record := read_json(folder / "server.json", "loaded") or {}).get("loaded"):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            server = Served({api: record[api] for api in APIS}, folder, process)
            yield server
            assert process.poll() is None
            assert "Traceback" not in server.log()
        finally:
            process.terminate()


def message_of_refusal(folder: Path, settings: dict[str, str], *arguments: str) -> str:
    """What a server that must not start says before it ends."""
    done = subprocess.run(
        command(folder, settings, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said
    return " ".join(said.split())


# Tokens.

TOKENS = {"disable_token_authorization": "false", "enable_model_api": "true"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("guarded"), TOKENS) as server:
        yield server


def is_refused(response: requests.Response) -> bool:
    """As TorchServe says it, and nothing more than that."""
    assert response.json() == {
        "code": 400,
        "type": "InvalidKeyException",
        "message": "Token Authorization failed. Token either incorrect, expired, or not provided correctly",
    }
    return response.status_code == 400


def test_the_key_file_is_torchserve_s_and_its_owner_s_only(guarded: Served) -> None:
    assert stat.S_IMODE(guarded.key_file.stat().st_mode) == 0o600
    content = json.loads(guarded.key_file.read_text())
    assert list(content) == ["management", "inference", "API"]
    assert len({entry["key"] for entry in content.values()}) == 3
    assert all(len(entry["key"]) >= 24 for entry in content.values())
    assert "expiration time" not in content["API"]
    for kind in ("management", "inference"):
        until = datetime.fromisoformat(content[kind]["expiration time"].replace("Z", "+00:00"))
        assert timedelta(minutes=50) < until - datetime.now(UTC) <= timedelta(minutes=60)
    assert all(key not in guarded.log() for key in guarded.keys().values())


@pytest.mark.parametrize("key", [None, "", "wrong", "inference", "management", "API", "é", "x" * 10_000])
@pytest.mark.parametrize(
    ("api", "path", "needed"),
    [
        ("inference", "/predictions/model", "inference"),
        ("inference", "/ping", "inference"),
        ("inference", "/api-description", "inference"),
        ("inference", "/v1/models/model", "inference"),
        ("inference", "/v2/health/live", "inference"),
        ("management", "/models", "management"),
        ("management", "/models/model", "management"),
        ("management", "/api-description", "management"),
        ("metrics", "/metrics", "inference"),
    ],
)
def test_each_api_has_its_key(guarded: Served, api: str, path: str, needed: str, key: str | None) -> None:
    sent = guarded.keys().get(key or "", key)
    response = guarded.ask(api, path, None if sent is None else sent.encode().decode("latin-1"))
    if key == needed:
        assert response.status_code == 200
    else:
        assert is_refused(response)


@pytest.mark.parametrize(
    "scheme", ["Basic {}", "{}", "bearer {}", "Bearer{}", "Bearer Bearer {}", "Bearer {} x"]
)
def test_a_key_is_given_in_one_way(guarded: Served, scheme: str) -> None:
    headers = {"Authorization": scheme.format(guarded.keys()["inference"])}
    assert is_refused(requests.get(f"{guarded.urls['inference']}/ping", headers=headers, timeout=PATIENCE_S))


def test_who_has_no_key_learns_nothing_and_changes_nothing(guarded: Served) -> None:
    for api in APIS:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            for path in ("/", "/nothing", "/models/model", "/models/nobody", "/predictions/nobody"):
                assert is_refused(guarded.ask(api, path, method=method))
    assert guarded.ask("inference", "/ping", guarded.keys()["inference"]).json() == {"status": "Healthy"}
    # A key in the URL would stand in logs, and is none.
    assert is_refused(guarded.ask("inference", f"/ping?token={guarded.keys()['inference']}"))


def test_two_authorizations_are_not_more_than_one(guarded: Served) -> None:
    where = urlsplit(guarded.urls["inference"])
    key = guarded.keys()["inference"].encode()
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S) as raw:
        raw.sendall(
            b"GET /ping HTTP/1.1\r\nAuthorization: Bearer wrong\r\nAuthorization: Bearer %b\r\n"
            b"Connection: close\r\n\r\n" % key
        )
        assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("kind", ["inference", "management"])
def test_a_renewed_key_takes_the_old_one_s_place(guarded: Served, kind: str) -> None:
    before = guarded.keys()
    api, path = {"inference": ("inference", "/ping"), "management": ("management", "/models")}[kind]
    for wrong in (None, before["inference"], before["management"], "wrong"):
        assert is_refused(guarded.ask("management", f"/token?type={kind}", wrong))
    assert guarded.ask("management", f"/token?type={kind}", before["API"]).status_code == 200
    after = guarded.keys()
    assert {name for name in after if after[name] != before[name]} == {kind}
    assert stat.S_IMODE(guarded.key_file.stat().st_mode) == 0o600
    assert is_refused(guarded.ask(api, path, before[kind]))
    assert guarded.ask(api, path, after[kind]).status_code == 200


@pytest.mark.parametrize(
    "query", ["", "?type=", "?type=API", "?type=token", "?type=inference%00", "?kind=inference"]
)
def test_what_is_no_kind_of_key_is_not_renewed(guarded: Served, query: str) -> None:
    before = guarded.keys()
    assert is_refused(guarded.ask("management", f"/token{query}", before["API"]))
    assert guarded.keys() == before


def test_keys_expire_and_are_had_again(tmp_path: Path) -> None:
    with served(tmp_path / "run", TOKENS | {"token_expiration_min": "0.04"}) as server:
        key = server.keys()["inference"]
        deadline = time.monotonic() + PATIENCE_S
        while server.ask("inference", "/ping", key).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert is_refused(server.ask("inference", "/ping", key))
        assert is_refused(server.ask("management", "/models", server.keys()["management"]))
        assert server.ask("management", "/token?type=inference", server.keys()["API"]).status_code == 200
        assert server.ask("inference", "/ping", server.keys()["inference"]).status_code == 200


def key_file(path: Path, **until: datetime | None) -> Path:
    """A file as TorchServe writes it, its keys named after their kinds."""
    content = {}
    for kind in ("management", "inference", "API"):
        content[kind] = {"key": f"the-{kind}-key"}
        moment = until.get(kind)
        if moment is not None:
            content[kind]["expiration time"] = moment.isoformat().replace("+00:00", "123Z")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
    return path


def test_a_key_file_of_torchserve_s_is_taken_over(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    path = key_file(
        tmp_path / "run" / "key_file.json",
        inference=now + timedelta(hours=1),
        management=now - timedelta(hours=1),
    )
    before = path.read_bytes()
    with served(tmp_path / "run", TOKENS) as server:
        assert path.read_bytes() == before
        assert server.ask("inference", "/ping", "the-inference-key").status_code == 200
        assert is_refused(server.ask("management", "/models", "the-management-key"))
        assert server.ask("management", "/token?type=management", "the-API-key").status_code == 200
        assert server.ask("management", "/models", server.keys()["management"]).status_code == 200
        assert server.keys()["inference"] == "the-inference-key"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"management": 3, "inference": 3, "API": 3}',
        '{"management": {}, "inference": {}, "API": {}}',
        '{"management": {"key": ""}, "inference": {"key": "a"}, "API": {"key": "b"}}',
        '{"management": {"key": 1}, "inference": {"key": "a"}, "API": {"key": "b"}}',
        '{"management": {"key": "a", "expiration time": "soon"}, "inference": {"key": "a"}, "API": {}}',
        "[" * 100_000,
    ],
    ids=lambda content: content[:60],
)
def test_a_damaged_key_file_is_no_reason_to_let_anybody_in(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key_file.json"
    path.write_text(content)
    settings = settings_from({"disable_token_authorization": "false", "key_file": str(path)}, {})
    with pytest.raises(ServerError, match="key_file.json: not a readable TorchServe key file"):
        Access(settings)
    assert path.read_text() == content


def test_a_server_says_so_and_ends(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text("{")
    assert "not a readable TorchServe key file" in message_of_refusal(tmp_path, TOKENS)


def test_a_key_that_could_not_be_written_is_not_taken(tmp_path: Path) -> None:
    """Otherwise nobody would have a key that holds."""
    path = tmp_path / "key_file.json"
    access = Access(settings_from({"disable_token_authorization": "false", "key_file": str(path)}, {}))
    keys = {kind: json.loads(path.read_text())[kind.value]["key"] for kind in KeyKind}
    path.unlink()
    path.mkdir()
    with pytest.raises(TorchportError, match="cannot write"):
        access.renew(KeyKind.INFERENCE)
    for kind, key in keys.items():
        access.require(kind, f"Bearer {key}".encode())


def test_without_tokens_nothing_is_accepted_as_one(tmp_path: Path) -> None:
    access = Access(settings_from({"key_file": str(tmp_path / "key_file.json")}, {}))
    assert not access.enabled
    assert not (tmp_path / "key_file.json").exists()
    for given in (None, b"", b"Bearer", b"Bearer ", b"Bearer None"):
        with pytest.raises(InvalidKey):
            access.require(KeyKind.INFERENCE, given)


# Strangers.


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"disable_token_authorization": "true"}, ["--host", "0.0.0.0"]),
        ({}, ["--host", "0.0.0.0", "--disable-token-auth"]),
        ({"metrics_address": "http://0.0.0.0:0"}, ["--disable-token-auth"]),
        ({"inference_address": "http://[::]:0"}, ["--disable-token-auth"]),
    ],
)
def test_nobody_listens_to_strangers_by_accident(
    tmp_path: Path, settings: dict[str, str], arguments: list[str]
) -> None:
    said = message_of_refusal(tmp_path, settings, *arguments)
    assert "strangers can connect, and nothing keeps them out" in said
    assert "--insecure" in said
    assert not (tmp_path / "server.json").exists()


# TLS.


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server's and a client's certificate by it, a client's that it knows nothing of."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl, to make certificates")
    folder = tmp_path_factory.mktemp("pki")

    def make(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    elliptic = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        make(
            *("req", "-x509", *elliptic, "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        make("req", *elliptic, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        make(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem"),
        )
    make("ec", "-in", "server.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key")
    return folder


def tls(pki: Path, **more: str) -> dict[str, str]:
    found = {f"{api}_address": "https://127.0.0.1:0" for api in APIS}
    found |= {"certificate_file": str(pki / "server.pem"), "private_key_file": str(pki / "server.key")}
    return found | more


@pytest.fixture(scope="module")
def encrypted(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = {"header_timeout": "1", "body_timeout": "2", "keep_alive_timeout": "2"}
    with served(tmp_path_factory.mktemp("encrypted"), tls(pki, **limits)) as server:
        yield server


def connected(server: Served, pki: Path, **versions: ssl.TLSVersion) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    for name, version in versions.items():
        setattr(context, name, version)
    where = urlsplit(server.urls["inference"])
    raw = socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S)
    return context.wrap_socket(raw, server_hostname="localhost")


def test_every_api_speaks_tls(encrypted: Served, pki: Path) -> None:
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(pki / "ca.pem")
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
def test_versions_of_today_are_spoken(encrypted: Served, pki: Path, newest: ssl.TLSVersion) -> None:
    with connected(encrypted, pki, maximum_version=newest) as wire:
        wire.sendall(b"GET /ping HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert wire.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_versions_of_yesterday_are_not(encrypted: Served, pki: Path) -> None:
    old = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        connected(encrypted, pki, minimum_version=old, maximum_version=old)


@pytest.mark.parametrize(
    "data",
    [b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n", b"", b"\x16\x03\x01", bytes(5000)],
    ids=["plain", "nothing", "half a hello", "zeros"],
)
def test_who_does_not_speak_it_is_cut_off(encrypted: Served, data: bytes) -> None:
    """At once, or when the time for a handshake is over."""
    where = urlsplit(encrypted.urls["inference"])
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S) as raw:
        raw.sendall(data)
        with contextlib.suppress(ConnectionError):
            while got := raw.recv(1000):
                assert b"HTTP" not in got


def test_time_and_size_are_bounded_inside_of_it_too(encrypted: Served, pki: Path) -> None:
    with connected(encrypted, pki) as wire:
        wire.sendall(b"GET /ping HTTP/1.1\r\nX: ")
        assert wire.recv(1000).startswith(b"HTTP/1.1 408 ")
    with connected(encrypted, pki) as wire:
        wire.sendall(b"POST /predictions/model HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n")
        assert wire.recv(1000).startswith(b"HTTP/1.1 413 ")
    with connected(encrypted, pki) as wire:
        wire.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 20:
            received += wire.recv(10_000)


def test_an_answer_that_is_not_taken_is_given_up_inside_of_it_too(encrypted: Served, pki: Path) -> None:
    with connected(encrypted, pki) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.sendall(b"POST /predictions/model HTTP/1.1\r\nContent-Length: 5\r\n\r\nlarge")
        port = wire.getsockname()[1]
        process = psutil.Process(encrypted.process.pid)
        deadline = time.monotonic() + PATIENCE_S
        while any(found.raddr and found.raddr.port == port for found in process.net_connections("tcp")):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_clients_are_known_by_their_certificates(pki: Path, tmp_path: Path) -> None:
    with served(tmp_path / "run", tls(pki, client_ca_file=str(pki / "ca.pem"))) as server:
        with requests.Session() as session:
            session.trust_env, session.verify = False, str(pki / "ca.pem")
            session.cert = (str(pki / "client.pem"), str(pki / "client.key"))
            for api, path in (("inference", "/ping"), ("management", "/models"), ("metrics", "/metrics")):
                assert session.get(server.urls[api] + path, timeout=PATIENCE_S).status_code == 200
        for cert in (None, (str(pki / "stranger.pem"), str(pki / "stranger.key"))):
            for api in APIS:
                # With TLS 1.3 a client learns of it when it reads: that may look like a reset.
                with pytest.raises(requests.exceptions.ConnectionError):
                    requests.get(server.urls[api], verify=str(pki / "ca.pem"), cert=cert, timeout=PATIENCE_S)


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
def test_certificates_that_are_none(pki: Path, tmp_path: Path, change: dict[str, str], reason: str) -> None:
    settings = tls(pki) | {key: str(pki / name) for key, name in change.items()}
    assert reason in message_of_refusal(tmp_path, settings)


def test_what_tls_needs_is_asked_for(pki: Path, tmp_path: Path) -> None:
    addresses = {f"{api}_address": "https://127.0.0.1:0" for api in APIS}
    assert "https:// needs certificate_file and private_key_file" in message_of_refusal(tmp_path, addresses)
    said = message_of_refusal(tmp_path, {"client_ca_file": str(pki / "ca.pem")})
    assert "the addresses are to be https://" in said
