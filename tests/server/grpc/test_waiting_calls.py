"""Calls that wait: their deadlines, that they are cancelled, that there is no room for more."""

import time
from functools import partial

import grpc
import pytest

from tests.server.grpc.calls import Code, fp32, refused
from tests.server.grpc_client import (
    INFERENCE,
    prediction,
)
from tests.server.http.connections import MIB, Peak
from tests.server.metrics import metric
from tests.server.waiting import wait_until

pytestmark = pytest.mark.server


def test_a_deadline_is_the_requests_own(server, client, hold):
    holding = hold("obedient")
    before = metric(server, "torchport_expired_requests_total", model_name="obedient")
    request = prediction("obedient", data=b"tell")
    late = client.method(f"/{INFERENCE}/Predictions").future(request, timeout=0.3)
    assert late.exception(30).code() is Code.DEADLINE_EXCEEDED
    expired = partial(metric, server, "torchport_expired_requests_total", model_name="obedient")
    wait_until(lambda: expired() == before + 1)
    assert metric(server, "torchport_queue_length", model_name="obedient") == 0
    hold.release()
    assert holding.result(30).prediction == b"held"


def test_a_request_whose_call_was_cancelled_never_reaches_a_worker(server, client, hold, tmp_path):
    notes = tmp_path / "notes"
    holding = hold("obedient")
    method = client.method(f"/{INFERENCE}/Predictions")
    stream = client.method(f"/{INFERENCE}/StreamPredictions", "unary_stream")
    note = prediction("obedient", data=f"note {notes} cancelled".encode())
    calls = [method.future(note, timeout=60), stream(note, timeout=60)]
    wait_until(lambda: metric(server, "torchport_queue_length", model_name="obedient") == 2)
    before = server.log().count("CANCELLED")
    for call in calls:
        call.cancel()
    wait_until(lambda: server.log().count("CANCELLED") == before + 2)
    last = method.future(prediction("obedient", data=f"note {notes} last".encode()), timeout=60)
    hold.release()
    assert holding.result(30).prediction == b"held"
    assert last.result(30).prediction == b"noted"
    assert notes.read_text() == "last\n"


def test_a_full_queue_says_when_to_come_again(server, client, hold):
    holding = hold("narrow")
    method = client.method(f"/{INFERENCE}/Predictions")
    waiting = method.future(prediction("narrow", data=b"tell"), timeout=60)
    wait_until(lambda: metric(server, "torchport_queue_length", model_name="narrow") == 1)
    full = refused(lambda: client.predict("narrow", data=b"tell"), Code.UNAVAILABLE)
    assert dict(full.trailing_metadata())["retry-after"] == "1"
    hold.release()
    assert holding.result(30).prediction == b"held"
    assert waiting.result(30).prediction


def test_the_metrics_tell_how_long_the_last_request_waited(server, client, hold):
    holding = hold("obedient")
    method = client.method(f"/{INFERENCE}/Predictions")
    waiting = method.future(prediction("obedient", data=b"tell"), timeout=60)
    wait_until(lambda: metric(server, "torchport_queue_length", model_name="obedient") == 1)
    time.sleep(0.3)
    hold.release()
    assert holding.result(30).prediction == b"held"
    assert waiting.result(30).prediction
    waited_ms = metric(server, "QueueTime")
    assert waited_ms >= 300
    # By the Open Inference Protocol too: its worker has nothing else to do.
    client.infer(model_name="linear", inputs=[fp32([1.0], (1, 1))])
    assert metric(server, "QueueTime") < waited_ms


def test_pieces_that_the_client_does_not_read_take_no_memory_without_end(server, client):
    peak = Peak(server.pid)
    completed = partial(metric, server, "torchport_completed_requests_total", model_name="obedient")
    before = completed()
    stream = client.method(f"/{INFERENCE}/StreamPredictions", "unary_stream")
    call = stream(prediction("obedient", data=b"pour 1024"), timeout=60)
    # The model has written all 64 MiB, and nothing of it was read.
    wait_until(lambda: completed() == before + 1)
    assert peak.growth < 40 * MIB
    received = []
    with pytest.raises(grpc.RpcError) as caught:
        received.extend(len(piece.prediction) for piece in call)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert 0 < len(received) < 1024
