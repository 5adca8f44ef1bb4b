"""Whatever a handler answers, raises or counts, its worker lives and the next request is answered."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests

from tests.server.archives import write_archive
from tests.server.metrics import metric
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

pytestmark = pytest.mark.server

HANDLER = r"""
    import asyncio
    import os
    import threading
    from types import SimpleNamespace

    class PredictionException(Exception):
        def __init__(self, message, error_code=500):
            self.message, self.error_code = message, error_code

    class Silent:
        def __str__(self):
            raise RuntimeError("no text")
        __repr__ = __str__

    class Failing(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    class Interrupting(Exception):
        def __len__(self):
            raise KeyboardInterrupt

    class Lying(bytes):
        def __bytes__(self):
            raise RuntimeError("no bytes")

    class Spelled(str):
        def encode(self, *how):
            return 5

    class Torn(dict):
        def items(self):
            raise KeyError("torn")

    def dimension(name, value):
        return SimpleNamespace(name=name, value=value)

    def refuse(message, code=400):
        raise PredictionException(message, code)

    def fail(error):
        raise error

    def act(name, text, context):
        metrics = context.metrics
        match name:
            case "pid": return str(os.getpid())
            case "exit with a thread":
                threading.Thread(target=threading.Event().wait).start()
                raise SystemExit(3)
            case "message of the client's": refuse(f"cannot read {text}")
            case "message that has no text": refuse(Silent())
            case "huge code of an error": refuse("no", 2**70)
            case "negative code of an error": refuse("no", -1)
            case "code of an error below 200": refuse("no", 100)
            case "code of an error above 599": refuse("no", 600)
            case "error without text": fail(Failing())
            case "error that interrupts its traceback": fail(Interrupting("why"))
            case "cancelled": fail(asyncio.CancelledError())
            case "interrupted": fail(KeyboardInterrupt())
            case "huge status": context.set_response_status(2**70, idx=0)
            case "infinite status": context.set_response_status(float("inf"), idx=0)
            case "status without number": context.set_response_status("high", idx=0)
            case "status below 200": context.set_response_status(199, idx=0)
            case "status above 599": context.set_response_status(600, idx=0)
            case "number as a phrase": context.set_response_status(200, 5, 0)
            case "object as a phrase": context.set_response_status(200, Silent(), 0)
            case "surrogate in a phrase": context.set_response_status(200, text, 0)
            case "surrogate in a header": context.set_response_header(0, "x-a", text)
            case "object as a header": context.set_response_header(0, Silent(), Silent())
            case "surrogate in a type": context.set_response_content_type(0, text)
            case "object as a type": context.set_response_content_type(0, Silent())
            case "number as a unit": metrics.add_metric("A", 1, 5)
            case "surrogate in a unit": metrics.add_metric("A", 1, text)
            case "surrogate in a metric": metrics.add_counter(text, 1)
            case "surrogate in a label": metrics.add_counter("A", 1, dimensions=[dimension("L", text)])
            case "number as a label": metrics.add_metric_to_cache("B", "s", [5]).add_or_update(1, ["x"])
            case "surrogate in a metric's type": metrics.add_metric("A", 1, "s", metric_type=text)
            case "bytes that fail": return Lying(b"x")
            case "text that is a number": return Spelled("x")
            case "torn answer": return Torn(a=1)
            case "metric of the server": metrics.add_metric("torchport_queue_seconds", 1, "s")
            case "label without a name": metrics.add_counter("C", 1, dimensions=[dimension("", "x")])
            case "label of Prometheus": metrics.add_counter("C", 1, dimensions=[dimension("__name__", "x")])
            case "no processors": context.request_processor = []
        return "done"

    def handle(data, context):
        if data is None:
            return None
        asked = data[0]["body"]
        return [act(asked["do"], asked.get("text"), context)]
"""

UNLOADABLE = """
    class Interrupting(Exception):
        def __len__(self):
            raise KeyboardInterrupt

    raise Interrupting("why")
"""

DROPPED = "torchport_dropped_metric_values_total"

SURROGATE = b"\\ud800"
"""Half of a surrogate pair, as JSON spells it; UTF-8 has no bytes for it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("values")
    store = Store(folder / "store")
    write_archive(store.path, "values", HANDLER, config={"minWorkers": 1, "maxWorkers": 1})
    write_archive(store.path, "unloadable", UNLOADABLE)
    arguments = ("--ncs", "--no-grpc", "--models", "values", "--enable-model-api")
    with start(store, folder / "run", arguments=arguments) as server:
        yield server


def ask(server: ServerProcess, act: str) -> requests.Response:
    return requests.post(
        f"{server.urls['inference']}/predictions/values",
        data=b'{"do": "%s", "text": "%s"}' % (act.encode(), SURROGATE),
        headers={"Content-Type": "application/json"},
        timeout=60,
    )


@pytest.mark.parametrize(
    ("act", "status"),
    [
        ("message of the client's", 400),
        ("message that has no text", 400),
        ("huge code of an error", 500),
        ("negative code of an error", 500),
        ("code of an error below 200", 500),
        ("code of an error above 599", 500),
        ("error without text", 503),
        ("error that interrupts its traceback", 503),
        ("cancelled", 503),
        ("interrupted", 503),
        ("huge status", 500),
        ("infinite status", 500),
        ("status without number", 500),
        ("status below 200", 500),
        ("status above 599", 500),
        ("number as a phrase", 200),
        ("object as a phrase", 200),
        ("surrogate in a phrase", 200),
        ("surrogate in a header", 200),
        ("object as a header", 200),
        ("surrogate in a type", 200),
        ("object as a type", 200),
        ("number as a unit", 200),
        ("surrogate in a unit", 200),
        ("surrogate in a metric", 200),
        ("surrogate in a label", 200),
        ("number as a label", 200),
        ("surrogate in a metric's type", 200),
        ("bytes that fail", 200),
        ("text that is a number", 200),
        ("torn answer", 503),
        ("metric of the server", 200),
        ("label without a name", 200),
        ("label of Prometheus", 200),
        ("no processors", 503),
    ],
)
def test_no_value_of_a_handler_ends_its_worker(server: ServerProcess, act: str, status: int) -> None:
    before = ask(server, "pid").text
    assert ask(server, act).status_code == status
    assert ask(server, "pid").text == before


def test_the_error_that_a_handler_loads_with_is_told(server: ServerProcess) -> None:
    answer = requests.post(
        f"{server.urls['management']}/models",
        params={"url": "unloadable-1.0.mar", "initial_workers": "1", "synchronous": "true"},
        timeout=60,
    )
    assert answer.status_code >= 400
    assert "Interrupting: why" in answer.text


def test_metrics_can_be_read_after_all_that(server: ServerProcess) -> None:
    acts = ("metric of the server", "label without a name", "label of Prometheus", "surrogate in a label")
    before = metric(server, DROPPED, model_name="values")
    for act in acts:
        assert ask(server, act).status_code == 200
    text = requests.get(f"{server.urls['metrics']}/metrics", timeout=60).text
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(set(names)) == len(names)
    # The label with half of a pair is shown, as one with a question mark.
    assert metric(server, DROPPED, model_name="values") - before == len(acts) - 1
    assert "metric 'torchport_queue_seconds' is dropped" in server.log()


def test_a_handler_that_ends_its_process_does_not_wait_for_its_threads(server: ServerProcess) -> None:
    before = ask(server, "pid").text
    assert ask(server, "exit with a thread").status_code == 500
    assert ask(server, "pid").text != before
