"""TorchServe's management service: models come and go, and what is refused."""

import json

import pytest

from tests.server.archives import write_archive
from tests.server.grpc_services.calls import Code, refused

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


def test_a_description_may_ask_the_handler_too(manager):
    (described,) = json.loads(manager.manage("DescribeModel", model_name="linear", customized=True))
    assert described["modelName"] == "linear"


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
        ("SetDefault", {"model_name": "linear"}, Code.INVALID_ARGUMENT),
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
