"""The same requests to a real TorchServe and to `torchport serve`, with the same store and configuration:
the same status, headers and body, but for what `DIFFERENCES` lists."""

import http.client
import re
import time
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT
from tests.server.archives import write_archive
from tests.targets.conformance_differences import DIFFERENCES
from tests.targets.conformance_inference import ACTS, BODIES, CONTEXT, ECHO, FORMS, PATHS
from tests.targets.conformance_management import MESSAGE, SCENARIOS, delete, get, post
from tests.targets.conformance_server import Both, Step, ask, send
from torchport.store.folders import Store
from torchport.targets import torchport_serve, torchserve
from torchport.targets.torchserve_setup import Ports

pytestmark = pytest.mark.serving

CONFIGURATION = {
    "enable_model_api": "true",
    "disable_token_authorization": "true",
    "default_workers_per_model": "1",
    "install_py_dep_per_model": "false",
    "max_request_size": "2000000",
    "metrics_mode": "prometheus",
    "model_metrics_auto_detect": "true",
    "load_models": "echo-1.0.mar,echo-2.0.mar,acts-1.0.mar",
}
ARCHIVED = Path(__file__).parent / "archived"

SECOND = b"""
def handle(data, context):
    return data and ["second"]


def another(data, context):
    return data and ["another"]
"""
CONFIG = {
    "minWorkers": 1,
    "maxWorkers": 2,
    "batchSize": 4,
    "maxBatchDelay": 50,
    "responseTimeout": 30,
    "startupTimeout": 40,
    "deviceType": "cpu",
    "jobQueueSize": 7,
    "maxRetryTimeoutInSec": 60,
    "clientTimeoutInMills": 5000,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Both servers on one store: what is loaded from the start, then what the scenarios register."""
    folder = tmp_path_factory.mktemp("conformance")
    (folder / "config.properties").write_text("")
    store = Store(folder / "store")
    echo, acts = ((ARCHIVED / name).read_text(encoding="utf-8") for name in ("echo.py", "acts.py"))
    config = {"maxWorkers": 2, "minWorkers": 1, "mine": {"a": [1, 2]}}
    write_archive(store.path, "echo", echo, config=config, files={"extra.txt": b"x"})
    write_archive(store.path, "echo", echo, version="2.0")
    write_archive(store.path, "acts", acts)
    options = {"config": folder / "config.properties", "settings": CONFIGURATION}
    with (
        torchserve.start(store, folder / "theirs", ports=Ports.free(), **options) as theirs,
        torchport_serve.start(store, folder / "ours", arguments=("--ncs", "--no-grpc"), **options) as ours,
    ):
        write_archive(store.path, "later", echo)
        write_archive(store.path, "later", echo, version="2.0")
        write_archive(store.path, "configured", echo, config=CONFIG)
        write_archive(store.path, "other", echo, files={"second.py": SECOND})
        write_archive(store.path, "together", (ARCHIVED / "together.py").read_text(encoding="utf-8"))
        write_archive(store.path, "unimportable", "import nothing_of_that_name\n")
        write_archive(store.path, "handlerless", echo, manifest={"handler": ""})
        (store.path / "no_zip.mar").write_bytes(b"no zip")
        with zipfile.ZipFile(store.path / "no_manifest.mar", "w") as archive:
            archive.writestr("handler.py", echo)
        names = ("inference", "management", "metrics")
        their_urls = {name: f"http://127.0.0.1:{getattr(theirs.ports, name)}" for name in names}
        yield Both(their_urls, dict(ours.urls), store.path.resolve())


@pytest.fixture
def as_it_was(both):
    """Removes afterwards what a scenario that fails has left registered."""
    yield
    for urls in (both.theirs, both.ours):
        models = ask(urls["management"], get("/models")).json()["models"]
        for name in {model["modelName"] for model in models} - {"echo", "acts"}:
            versions = [v["modelVersion"] for v in ask(urls["management"], get(f"/models/{name}/all")).json()]
            for version in (*versions, *versions):  # The default one goes once it is the last.
                ask(urls["management"], delete(f"/models/{name}/{version}"))


@pytest.mark.parametrize("name", BODIES)
def test_bodies(both, name):
    both.compare(BODIES[name])


@pytest.mark.parametrize("name", FORMS)
def test_forms(both, name):
    both.compare(FORMS[name])


@pytest.mark.parametrize("name", PATHS)
def test_paths_and_methods(both, name):
    both.compare(PATHS[name])


@pytest.mark.parametrize("name", ACTS)
def test_what_handlers_do(both, name):
    both.compare(ACTS[name])


@pytest.mark.parametrize("name", CONTEXT)
def test_what_handlers_are_given(both, name):
    both.compare(CONTEXT[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_managing(both, as_it_was, name):
    for step in SCENARIOS[name]:
        both.compare(step)


def test_a_registration_that_fails_leaves_nothing(both, as_it_was):
    """Theirs may leave the model, without workers, or not: it depends on what its threads do first."""
    both.compare(post("/models?url=later-1.0.mar&startup_timeout=0&initial_workers=1", MESSAGE))
    theirs, ours = both.ask(get("/models/later"))
    assert theirs.status in (200, 404)
    assert ours.status == 404


def test_a_file_url_of_the_store(both, as_it_was):
    theirs, ours = both.ask(post(f"/models?url=file://{both.store}/later-1.0.mar&initial_workers=0"))
    assert (theirs.status, ours.status) == (500, 200)


def test_a_request_has_one_id(both):
    """In the answer and in the handler; a UUID where the client has chosen none."""
    for headers in ((), (("x-request-id", "mine-1"),)):
        for answer, chooses in zip(
            both.ask(Step("POST", ECHO, b"context", headers)), (False, True), strict=True
        ):
            given = answer.headers["x-request-id"]
            assert answer.json()["now"]["request_ids"] == {"0": given}
            assert (given == "mine-1") if headers and chooses else uuid.UUID(given).version == 4


def test_a_connection_after_an_error(both):
    """Theirs is closed; ours answers on."""
    kept = []
    for urls in (both.theirs, both.ours):
        parts = urlsplit(urls["inference"])
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        assert send(connection, Step("GET", "/ping")).status == 200
        socket = connection.sock
        assert send(connection, Step("GET", "/nothing")).status == 404
        assert send(connection, Step("GET", "/ping")).status == 200
        kept.append(connection.sock is socket)
        connection.close()
    assert kept == [False, True]


@pytest.mark.parametrize("port", ["inference", "management", "metrics"])
def test_what_theirs_describe_ours_describe(both, port):
    theirs, ours = both.ask(Step("OPTIONS", "/", port=port))
    described = {(path, method) for path, methods in ours.json()["paths"].items() for method in methods}
    for path, methods in theirs.json()["paths"].items():
        # They describe `/metrics` on every port, and answer 404 there.
        if path != "/metrics" or port == "metrics":
            assert {(path, method) for method in methods} <= described


def test_streams_of_requests_with_one_id_stay_apart(both, as_it_was):
    """Ours takes clients' ids over: two of the same in a batch are still two."""
    theirs, ours = both.ask(post("/models?url=together-1.0.mar&batch_size=2&max_batch_delay=100"))
    assert (theirs.status, ours.status) == (200, 200)

    def stream(text):
        return both.ask(Step("POST", "/predictions/together", text.encode(), [("x-request-id", "one")]))

    together = set()
    for _ in range(5):
        with ThreadPoolExecutor(3) as pool:
            for text, answers in zip("abc", pool.map(stream, "abc"), strict=True):
                for name, answer in zip(("theirs", "ours"), answers, strict=True):
                    assert re.fullmatch(rf"{text} {text} of [12]", answer.body.decode())
                    together |= {name} if answer.body.endswith(b"2") else set()
        if together == {"theirs", "ours"}:
            return
    raise AssertionError(f"no two requests came together, but at {together}")


# Metrics.


def samples(url, names=()):
    """Families' types, and samples' values by name and labels, without the host's."""
    query = "&".join(f"name[]={name}" for name in names)
    text = ask(url, Step("GET", f"/metrics?{query}")).body.decode()
    families = list(text_string_to_metric_families(text))
    values = {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}
    return {f.name: f.type for f in families if f.samples}, values


def counted(url):
    """Wait until the handler's metrics have reached the front: theirs come by way of a log."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        types, values = samples(url)
        if {"DeclaredEarly", "CustomCounter"} <= set(types):
            return types, values
        time.sleep(0.1)
    raise AssertionError(f"the handler's metrics did not come: {sorted(types)}")


def test_metrics_have_their_names_types_labels_and_values(both):
    both.ask(Step("POST", "/predictions/acts", b"count"))
    both.ask(Step("POST", f"{ECHO}/1.0", b"x"))
    (their_types, theirs), (our_types, ours) = (counted(urls["metrics"]) for urls in (both.theirs, both.ours))
    assert set(their_types) - set(our_types) == {"WorkerThreadTime"}
    assert {name: our_types[name] for name in their_types if name in our_types} == {
        name: kind for name, kind in their_types.items() if name in our_types
    }
    assert labels(theirs) - labels(ours) == {("WorkerThreadTime", ("Hostname", "Level"))}
    own = re.compile(r"(Counted|Timed|Sized|Parted|Failed|Custom|Declared)\w*(?<!_bucket)")
    assert {k: v for k, v in theirs.items() if own.fullmatch(k[0])} == {
        k: v for k, v in ours.items() if own.fullmatch(k[0])
    }
    assert sum(bool(own.fullmatch(name)) for name, _ in ours) == 16
    assert not any(name == "Negative" for name, _ in {*theirs, *ours})


def labels(values):
    """Names of samples with the names of their labels, and the labels' values where they are few."""
    return {(name, tuple(sorted(label for label, _ in pairs))) for name, pairs in values}


def test_answers_are_counted_alike(both):
    asked = [
        Step("POST", ECHO, b"x"),
        Step("POST", f"{ECHO}/2.0", b"x"),
        Step("POST", "/predictions/nobody", b"x"),
        Step("POST", "/predictions/acts", b"raise value error"),
        Step("OPTIONS", ECHO),
        Step("GET", "/ping"),
    ]
    grown = []
    for urls in (both.theirs, both.ours):
        _, before = samples(urls["metrics"])
        for step in asked:
            ask(urls["inference"], step)
        _, after = samples(urls["metrics"])
        counters = [key for key in after if key[0].startswith(("Requests", "ts_inference_requests"))]
        grown.append({key: after[key] - before.get(key, 0) for key in counters})
    theirs, ours = grown
    assert theirs == ours
    # One more with 2XX: the metrics before.
    by_status = {name: value for (name, _), value in ours.items() if name.startswith("Requests")}
    assert by_status == {"Requests2XX_total": 5, "Requests4XX_total": 1, "Requests5XX_total": 1}


def test_metrics_by_name(both):
    for names in (["Requests2XX"], ["ts_inference_requests_total", "nothing"], ["nothing"]):
        (_, theirs), (_, ours) = (samples(urls["metrics"], names) for urls in (both.theirs, both.ours))
        assert set(theirs) == set(ours)
    theirs, ours = both.ask(Step("GET", "/metrics", port="metrics"))
    assert theirs.headers["content-type"] == ours.headers["content-type"]


# What is written about it.


def test_every_difference_is_met_and_documented():
    page = " ".join((ROOT / "docs" / "torchserve.md").read_text(encoding="utf-8").split())
    missing = [name for name, reason in DIFFERENCES.items() if f"- `{name}`: {reason}" not in page]
    assert missing == []
    steps = [*BODIES.values(), *FORMS.values(), *PATHS.values(), *ACTS.values(), *CONTEXT.values()]
    steps += [step for scenario in SCENARIOS.values() for step in scenario]
    met = {step.differs.reason for step in steps if step.differs is not None}
    in_tests_of_their_own = {
        "request-ids",
        "keep-alive",
        "file-urls",
        "failed-registrations",
        "more-tokens",
        "token-answers",
        "handler-metrics",
        "histogram-bounds",
        "missing-metrics",
        "open-inference-protocol",
    }
    assert met | in_tests_of_their_own == set(DIFFERENCES)
