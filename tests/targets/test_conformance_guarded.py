"""TorchServe's rules for who may ask: tokens, a management API that changes nothing, CORS; and an envelope.
The same requests to a real TorchServe and to `torchport serve`."""

import json
import stat

import pytest

from tests.server.archives import write_archive
from tests.server.guarded import APIS, guarded
from tests.targets.conformance_server import Step, ask, differing
from torchport.store.folders import Store
from torchport.targets import torchserve
from torchport.targets.torchserve_setup import Ports

pytestmark = pytest.mark.serving

CONFIGURATION = {
    "enable_model_api": "false",
    "disable_token_authorization": "false",
    "default_workers_per_model": "1",
    "metrics_mode": "prometheus",
    "cors_allowed_origin": "https://example.org",
    "cors_allowed_methods": "GET, POST",
    "cors_allowed_headers": "X-Custom",
    "service_envelope": "json",
}
TWICE = """
def handle(data, context):
    if data is not None:
        return [2 * value for value in data]
"""
INSTANCES = b'{"instances": [1, 2.5]}'
JSON = (("Content-Type", "application/json"),)
PREDICT = Step("POST", "/predictions/twice", INSTANCES, JSON)
LIST = Step("GET", "/models", port="management")
METRICS = Step("GET", "/metrics?name[]=Requests2XX", port="metrics")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The URLs and the key file of either."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "config.properties").write_text("")
    store = Store(folder / "store")
    write_archive(store.path, "twice", TWICE)
    options = {"config": folder / "config.properties", "settings": CONFIGURATION}
    ours_too = CONFIGURATION | {"model_store": str(store.path)}
    with (
        torchserve.start(store, folder / "theirs", ports=Ports.free(), **options) as theirs,
        guarded(folder / "ours", ours_too, "--no-grpc") as ours,
    ):
        their_urls = {name: f"http://127.0.0.1:{getattr(theirs.ports, name)}" for name in APIS}
        yield [(their_urls, theirs.key_file), (ours.urls, ours.key_file)]


def ask_both(servers, step, authorization=""):
    """Their answer and ours; `{inference}` in `authorization` stands for the server's own key."""
    answers = []
    for urls, key_file in servers:
        keys = {kind: entry["key"] for kind, entry in json.loads(key_file.read_text()).items()}
        headers = [("Authorization", authorization.format(**keys))] if authorization else []
        answers.append(ask(urls[step.port], step, headers))
    return answers


@pytest.mark.parametrize(
    ("step", "authorization", "status"),
    [
        (PREDICT, "Bearer {inference}", 200),
        (PREDICT, "Bearer  {inference}", 200),
        (PREDICT, "", 400),
        (PREDICT, "Bearer wrong", 400),
        (PREDICT, "Bearer", 400),
        (PREDICT, "Basic {inference}", 400),
        (PREDICT, "bearer {inference}", 400),
        (PREDICT, "{inference}", 400),
        (PREDICT, "Bearer {management}", 400),
        (PREDICT, "Bearer {API}", 400),
        (Step("GET", "/ping"), "", 400),
        (Step("GET", "/ping"), "Bearer {inference}", 200),
        (Step("GET", "/nothing"), "", 400),
        (Step("GET", "/nothing"), "Bearer {inference}", 404),
        (LIST, "", 400),
        (LIST, "Bearer {inference}", 400),
        (LIST, "Bearer {API}", 400),
        (LIST, "Bearer {management}", 200),
    ],
)
def test_tokens(servers, step, authorization, status):
    theirs, ours = ask_both(servers, step, authorization)
    assert differing(theirs, ours) == set()
    assert ours.status == status


@pytest.mark.parametrize("step", [METRICS, Step("OPTIONS", "/"), Step("GET", "/api-description")])
def test_what_theirs_tell_anybody_ours_tell_who_has_a_key(servers, step):
    """The difference `more-tokens`."""
    theirs, ours = ask_both(servers, step)
    assert (theirs.status, ours.status) == (200, 400)
    assert ask_both(servers, step, "Bearer {inference}")[1].status == 200


@pytest.mark.parametrize(
    ("step", "status"),
    [
        (Step("POST", "/models?url=twice-1.0.mar", port="management"), 405),
        (Step("DELETE", "/models/twice", port="management"), 405),
        (Step("GET", "/models/twice", port="management"), 200),
        (Step("PUT", "/models/twice?min_worker=1&synchronous=true", port="management"), 200),
        (Step("PUT", "/models/twice/1.0/set-default", port="management"), 200),
    ],
)
def test_without_the_model_api_models_are_neither_added_nor_removed(servers, step, status):
    theirs, ours = ask_both(servers, step, "Bearer {management}")
    assert differing(theirs, ours) == set()
    assert ours.status == status


def test_answers_carry_the_headers_of_cors(servers):
    for step, status in ((PREDICT, 200), (Step("GET", "/nothing"), 404)):
        theirs, ours = ask_both(servers, step, "Bearer {inference}")
        assert differing(theirs, ours) == set()
        assert ours.status == status
        assert ours.headers["access-control-allow-origin"] == "https://example.org"
        assert ours.headers["access-control-allow-methods"] == "GET, POST"
        assert ours.headers["access-control-allow-headers"] == "X-Custom"


def test_an_envelope_opens_and_closes_the_body(servers):
    theirs, ours = ask_both(servers, PREDICT, "Bearer {inference}")
    assert theirs.json() == ours.json() == {"predictions": [2, 5.0]}


def test_a_new_key_replaces_the_old_one(servers):
    def keys():
        return [json.loads(key_file.read_text()) for _, key_file in servers]

    def renewing(kind):
        return Step("GET", f"/token?type={kind}", port="management")

    before = keys()
    for kind, authorization in (
        ("inference", "Bearer {management}"),
        ("inference", ""),
        ("other", "Bearer {API}"),
    ):
        theirs, ours = ask_both(servers, renewing(kind), authorization)
        # Theirs calls it authentication here and authorization elsewhere.
        assert differing(theirs, ours) == {"message"}
        assert ours.status == 400
    assert keys() == before
    # The difference `token-answers`: theirs is no JSON, whatever its type says.
    theirs, ours = ask_both(servers, renewing("inference"), "Bearer {API}")
    assert (theirs.status, ours.status) == (200, 200)
    assert not theirs.body.strip()
    assert "inference" in ours.json()["status"]
    for old, new, (urls, key_file) in zip(before, keys(), servers, strict=True):
        assert old["inference"]["key"] != new["inference"]["key"]
        assert (old["management"], old["API"]) == (new["management"], new["API"])
        assert list(new) == ["management", "inference", "API"]
        assert set(new["inference"]) == {"key", "expiration time"}
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        for key, status in ((old, 400), (new, 200)):
            headers = [("Authorization", f"Bearer {key['inference']['key']}")]
            assert ask(urls["inference"], PREDICT, headers).status == status
