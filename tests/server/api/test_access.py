"""Who may ask: TorchServe's tokens, and addresses that strangers reach."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from tests.server.guarded import APIS, Guarded, guarded_model, message_of_refusal
from tests.server.waiting import PATIENCE_S, wait_until
from tests.server.wire import Wire
from torchport.errors import ServerError, TorchportError
from torchport.server.api.tokens import Access, KeyKind
from torchport.server.errors import InvalidKey
from torchport.server.settings.reading import settings_from

pytestmark = pytest.mark.server

TOKENS = {"disable_token_authorization": "false", "enable_model_api": "true"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_model(tmp_path_factory.mktemp("guarded"), TOKENS) as server:
        yield server


def is_refused(response: requests.Response) -> bool:
    """As TorchServe says it, and nothing more than that."""
    message = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
    if "/v2/" in response.url:
        assert response.json() == {"error": message}
    else:
        assert response.json() == {"code": 400, "type": "InvalidKeyException", "message": message}
    return response.status_code == 400


def test_the_key_file_is_torchserve_s_and_its_owner_s_only(guarded: Guarded) -> None:
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
def test_each_api_has_its_key(guarded: Guarded, api: str, path: str, needed: str, key: str | None) -> None:
    sent = guarded.keys().get(key or "", key)
    response = guarded.ask(api, path, None if sent is None else sent.encode().decode("latin-1"))
    if key == needed:
        assert response.status_code == 200
    else:
        assert is_refused(response)


@pytest.mark.parametrize(
    "scheme", ["Basic {}", "{}", "bearer {}", "Bearer{}", "Bearer Bearer {}", "Bearer {} x"]
)
def test_a_key_is_given_in_one_way(guarded: Guarded, scheme: str) -> None:
    headers = {"Authorization": scheme.format(guarded.keys()["inference"])}
    assert is_refused(requests.get(f"{guarded.urls['inference']}/ping", headers=headers, timeout=PATIENCE_S))


def test_who_has_no_key_learns_nothing_and_changes_nothing(guarded: Guarded) -> None:
    for api in APIS:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            for path in ("/", "/nothing", "/models/model", "/models/nobody", "/predictions/nobody"):
                assert is_refused(guarded.ask(api, path, method=method))
    assert guarded.ask("inference", "/ping", guarded.keys()["inference"]).json() == {"status": "Healthy"}
    # A key in the URL would stand in logs, and is none.
    assert is_refused(guarded.ask("inference", f"/ping?token={guarded.keys()['inference']}"))


def test_two_authorizations_are_not_more_than_one(guarded: Guarded) -> None:
    key = guarded.keys()["inference"].encode()
    with Wire(guarded.urls["inference"]) as raw:
        raw.send(
            b"GET /ping HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Bearer wrong\r\nAuthorization: Bearer %b\r\nConnection: close\r\n\r\n" % key
        )
        assert raw.answer().status == 400


@pytest.mark.parametrize("kind", ["inference", "management"])
def test_a_renewed_key_takes_the_old_one_s_place(guarded: Guarded, kind: str) -> None:
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
def test_what_is_no_kind_of_key_is_not_renewed(guarded: Guarded, query: str) -> None:
    before = guarded.keys()
    assert is_refused(guarded.ask("management", f"/token{query}", before["API"]))
    assert guarded.keys() == before


def test_keys_expire_and_are_had_again(tmp_path: Path) -> None:
    with guarded_model(tmp_path / "run", TOKENS | {"token_expiration_min": "0.04"}) as server:
        key = server.keys()["inference"]
        wait_until(lambda: server.ask("inference", "/ping", key).status_code != 200)
        assert is_refused(server.ask("inference", "/ping", key))
        assert is_refused(server.ask("management", "/models", server.keys()["management"]))
        assert server.ask("management", "/token?type=inference", server.keys()["API"]).status_code == 200
        assert server.ask("inference", "/ping", server.keys()["inference"]).status_code == 200


def key_of(kind: str) -> str:
    return f"the-key-of-{kind}-which-nobody-guesses"


def key_file(path: Path, **until: datetime | None) -> Path:
    """A file as TorchServe writes it, its keys named after their kinds."""
    content = {}
    for kind in ("management", "inference", "API"):
        content[kind] = {"key": key_of(kind)}
        moment = until.get(kind)
        if moment is not None:
            content[kind]["expiration time"] = moment.isoformat().replace("+00:00", "123Z")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
    path.chmod(0o600)
    return path


def test_a_key_file_of_torchserve_s_is_taken_over(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    path = key_file(
        tmp_path / "run" / "key_file.json",
        inference=now + timedelta(hours=1),
        management=now - timedelta(hours=1),
    )
    before = path.read_bytes()
    with guarded_model(tmp_path / "run", TOKENS) as server:
        assert path.read_bytes() == before
        assert server.ask("inference", "/ping", key_of("inference")).status_code == 200
        assert is_refused(server.ask("management", "/models", key_of("management")))
        assert server.ask("management", "/token?type=management", key_of("API")).status_code == 200
        assert server.ask("management", "/models", server.keys()["management"]).status_code == 200
        assert server.keys()["inference"] == key_of("inference")


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
    path.chmod(0o600)
    settings = settings_from({"disable_token_authorization": "false", "key_file": str(path)}, {})
    with pytest.raises(ServerError, match="key_file.json: not a readable TorchServe key file"):
        Access(settings)
    assert path.read_text() == content


LONG = {kind: key_of(kind) for kind in ("management", "inference", "API")}
UNSAFE = {
    "short": ({"API": "AbCd+/12"}, 0o600, "the key of API can be guessed"),
    "all the same": ({"inference": "a" * 64}, 0o600, "the key of inference can be guessed"),
    "few different": ({"management": "01" * 32}, 0o600, "the key of management can be guessed"),
    "with spaces": ({"API": "four words that are no key at all"}, 0o600, "the key of API can be guessed"),
    "not of ASCII": ({"API": "ä" + LONG["API"]}, 0o600, "the key of API can be guessed"),
    "one for two": ({"API": LONG["inference"]}, 0o600, "the same key for two APIs"),
    "read by all": ({}, 0o604, "read by others .mode 0604.: chmod 600"),
    "written by a group": ({}, 0o620, "read by others"),
    "for ever": ({"expiring": "inference"}, 0o600, "the key of management never expires"),
}


def opened(path: Path) -> Access:
    return Access(settings_from({"disable_token_authorization": "false", "key_file": str(path)}, {}))


@pytest.mark.parametrize("case", UNSAFE)
def test_a_key_file_that_is_given_keeps_what_ours_promises(tmp_path: Path, case: str) -> None:
    changed, mode, message = UNSAFE[case]
    later = datetime.now(UTC) + timedelta(hours=1)
    expiring = [changed["expiring"]] if "expiring" in changed else ["inference", "management"]
    path = key_file(tmp_path / "key_file.json", **dict.fromkeys(expiring, later))
    content = json.loads(path.read_text())
    for kind, key in changed.items():
        if kind in content:
            content[kind]["key"] = key
    path.write_text(json.dumps(content))
    path.chmod(mode)
    with pytest.raises(ServerError, match=message):
        opened(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
@pytest.mark.parametrize(
    ("owner", "mode", "message"),
    [(0, 0o440, None), (1234, 0o600, "another user's"), (0, 0o460, "read by others")],
)
def test_whose_a_key_file_may_be(tmp_path: Path, owner: int, mode: int, message: str | None) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    path = key_file(tmp_path / "key_file.json", inference=later, management=later)
    os.chown(path, owner, 1234)
    path.chmod(mode)
    if message is None:
        opened(path).require(KeyKind.API, f"Bearer {key_of('API')}".encode())
    else:
        with pytest.raises(ServerError, match=message):
            opened(path)


def test_what_a_server_wrote_it_takes_again(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    opened(path)
    before = path.read_bytes()
    opened(path)
    assert path.read_bytes() == before


def test_a_server_says_so_and_ends(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text("{")
    (tmp_path / "key_file.json").chmod(0o600)
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
