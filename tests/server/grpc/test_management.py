"""TorchServe's management service: models come and go, and what is refused."""

import json

import pytest
import requests

from tests.server.archives import write_archive
from tests.server.grpc.calls import Code, refused
from tests.server.grpc_client import MANAGEMENT
from torchport.server.grpc.messages import management

pytestmark = pytest.mark.server


def test_models_come_and_go(server, client, manager):
    said = manager.manage("RegisterModel", url="bare-1.0.mar", model_name="second")
    assert "registered with 0 initial workers" in said
    refused(lambda: client.predict("second", data=b"tell"), Code.UNAVAILABLE)
    assert manager.manage("ScaleWorker", model_name="second") == "Processing worker updates..."
    said = manager.manage("ScaleWorker", model_name="second", min_worker=1, max_worker=2, synchronous=True)
    assert said == "Workers scaled to 1 for model: second"
    assert client.predict("second", data=b"count 1") == b"0"
    assert manager.manage("SetDefault", model_name="second", model_version="1.0") == (
        'Default version successfully updated for model "second" to "1.0"'
    )
    (described,) = json.loads(manager.manage("DescribeModel", model_name="second", model_version="1.0"))
    assert (described["minWorkers"], described["maxWorkers"]) == (1, 2)
    listed = json.loads(manager.manage("ListModels"))
    assert [m["modelName"] for m in listed["models"]] == ["bare", "linear", "narrow", "obedient", "second"]
    page = json.loads(manager.manage("ListModels", limit=2, next_page_token=1))
    assert [m["modelName"] for m in page["models"]] == ["linear", "narrow"]
    assert manager.manage("UnregisterModel", model_name="second") == 'Model "second" unregistered'
    refused(lambda: client.predict("second", data=b"tell"), Code.NOT_FOUND)


DESCRIBES = """
    def handle(data, context):
        if not data:
            return None
        headers = context.get_all_request_header(0)
        if headers.get("mood") == "bad":
            raise ValueError("no description")
        return [{"headers": headers}]
"""


def test_a_description_may_ask_the_handler_too(manager, store):
    write_archive(store.path, "speaking", DESCRIBES)
    asked = management.DescribeModelRequest(model_name="speaking", customized=True)

    def describe(*metadata):
        return manager.call(MANAGEMENT, "DescribeModel", asked, metadata=metadata).msg

    try:
        manager.manage("RegisterModel", url="speaking-1.0.mar", initial_workers=1, synchronous=True)
        (described,) = json.loads(describe(("mood", "good"), ("describe", "False")))
        assert described["modelName"] == "speaking"
        headers = described["customizedMetadata"]["headers"]
        assert (headers["mood"], headers["describe"]) == ("good", "True")
        refused(lambda: describe(("mood", "bad")), Code.UNAVAILABLE)
    finally:
        manager.manage("UnregisterModel", model_name="speaking")
        (store.path / "speaking-1.0.mar").unlink()


def test_json_is_that_of_the_rest_api(server, manager):
    listed = requests.get(f"{server.urls['management']}/models?limit=2", timeout=30)
    assert manager.manage("ListModels", limit=2) == listed.text
    (described,) = json.loads(manager.manage("DescribeModel", model_name="linear"))
    (rest,) = requests.get(f"{server.urls['management']}/models/linear", timeout=30).json()
    assert list(described) == list(rest)
    everything = manager.manage("DescribeModel", model_name="linear", model_version="all")
    assert [each["modelVersion"] for each in json.loads(everything)] == ["1.0"]


def test_a_web_page_may_not_manage(manager):
    asked = management.UnregisterModelRequest(model_name="linear")
    metadata = [("origin", "https://example.org")]
    error = refused(
        lambda: manager.call(MANAGEMENT, "UnregisterModel", asked, metadata=metadata), Code.PERMISSION_DENIED
    )
    assert "cors_allowed_origin" in error.details()


@pytest.mark.parametrize(
    ("name", "values", "code"),
    [
        ("RegisterModel", {}, Code.INVALID_ARGUMENT),
        ("RegisterModel", {"url": "none.mar"}, Code.NOT_FOUND),
        ("RegisterModel", {"url": "linear-1.0.mar"}, Code.ABORTED),
        ("ScaleWorker", {"model_name": "linear", "min_worker": 2, "max_worker": 1}, Code.INVALID_ARGUMENT),
        ("ScaleWorker", {"model_name": "linear", "min_worker": 2**31 - 1}, Code.INVALID_ARGUMENT),
        ("ScaleWorker", {"model_name": "none"}, Code.NOT_FOUND),
        ("ScaleWorker", {}, Code.INVALID_ARGUMENT),
        ("SetDefault", {}, Code.NOT_FOUND),
        ("SetDefault", {"model_name": "linear"}, Code.NOT_FOUND),
        ("SetDefault", {"model_name": "linear", "model_version": "9"}, Code.NOT_FOUND),
        ("UnregisterModel", {}, Code.INVALID_ARGUMENT),
        ("UnregisterModel", {"model_name": "linear", "model_version": "9"}, Code.NOT_FOUND),
        # Not a path of the REST API by way of a name.
        ("UnregisterModel", {"model_name": "linear/1.0"}, Code.NOT_FOUND),
        ("DescribeModel", {"model_name": "linear?limit=1"}, Code.NOT_FOUND),
    ],
)
def test_what_management_refuses(client, manager, name, values, code):
    refused(lambda: manager.manage(name, **values), code)
    assert client.predict("linear", data=b"[4.0]")


def test_workers_that_do_not_start_are_told_of(manager, store):
    write_archive(store.path, "sick", "raise ValueError('sick ' + 'x' * 20000)")
    try:
        asked = {"url": "sick-1.0.mar", "initial_workers": 1, "synchronous": True}
        said = refused(lambda: manager.manage("RegisterModel", **asked), Code.INTERNAL)
    finally:
        (store.path / "sick-1.0.mar").unlink()
    assert said.details().startswith("Failed to start workers for model sick")
    assert len(said.details()) < 3000
