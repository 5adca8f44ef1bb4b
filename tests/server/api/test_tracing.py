"""Spans: one for each prediction, child of the client's."""

import json

import pytest
import requests

from tests.server.archives import write_archive
from torchport.errors import ServerError
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server

HANDLER = """
    def handle(data, context):
        if data is not None and data[0].get("body") == "fail":
            raise ValueError("asked to")
        return ["done"] * len(data or [])
"""


def spans(text):
    """The JSON objects that the console exporter writes."""
    decoder, found, at = json.JSONDecoder(), [], text.find("{\n")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
            found.append(value)
        except ValueError:
            end = at + 1
        at = text.find("{\n", end)
    return [span for span in found if "context" in span]


def test_a_prediction_is_a_span_and_child_of_the_clients(tmp_path):
    pytest.importorskip("opentelemetry.sdk")
    store = Store(tmp_path / "store")
    write_archive(store.path, "done", HANDLER, config={"minWorkers": 1, "maxWorkers": 1})
    settings = {"enable_grpc": "false", "opentelemetry": "true"}
    environment = {"OTEL_TRACES_EXPORTER": "console"}
    with start(store, tmp_path / "run", settings=settings, environment=environment) as server:
        url = f"{server.urls['inference']}/predictions/done"
        trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        headers = {"traceparent": f"00-{trace}-{parent}-01", "Content-Type": "text/plain"}
        requests.post(url, data="x", headers=headers, timeout=10)
        requests.post(url, data="fail", headers={"Content-Type": "text/plain"}, timeout=10)
    answered, failed = spans(server.log())
    assert answered["context"]["trace_id"] == f"0x{trace}"
    assert answered["parent_id"] == f"0x{parent}"
    assert answered["name"] == "predict done"
    assert answered["attributes"]["http.response.status_code"] == 200
    assert answered["attributes"]["torchport.version"] == "1.0"
    assert failed["parent_id"] is None
    assert failed["attributes"]["http.response.status_code"] == 503
    assert failed["status"]["status_code"] == "ERROR"


def test_an_exporter_that_is_not_known_is_named(tmp_path):
    pytest.importorskip("opentelemetry.sdk")
    store = Store(tmp_path / "store")
    store.path.mkdir()
    settings = {"enable_grpc": "false", "opentelemetry": "true"}
    with pytest.raises(ServerError, match="OTEL_TRACES_EXPORTER='zipkin'"):
        start(store, tmp_path / "run", settings=settings, environment={"OTEL_TRACES_EXPORTER": "zipkin"})
