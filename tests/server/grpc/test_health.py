"""Health checks, and how a server ends that has calls at hand."""

import os
import signal
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.grpc.calls import Code, refused
from tests.server.grpc_client import (
    INFERENCE,
    OPEN_INFERENCE,
    Client,
    prediction,
)
from tests.server.waiting import wait_until
from torchport.errors import ServerError
from torchport.server.grpc.messages import inference, open_inference
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server


@pytest.mark.parametrize("port", ["grpc_inference", "grpc_management"])
def test_health_checks(server, port):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports[port]}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        unknown = health_pb2.HealthCheckRequest(service="nothing")
        refused(lambda: health.Check(unknown, timeout=30), Code.NOT_FOUND)
        watch = health.Watch(unknown, timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


def test_calls_that_are_cancelled_do_not_end_a_server_that_logs_them(server):
    for _ in range(200):
        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
            next(watch)
            watch.cancel()
    assert server.process.poll() is None
    assert "gRPC /grpc.health.v1.Health/Watch" in server.log()


def test_an_ending_server_says_so_and_answers_what_it_took(store, grpc_server, tmp_path):
    gate = tmp_path / "gate"
    health, serving = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    settings = {"grpc_server": grpc_server, "drain_time": "4"}
    with start(store, tmp_path / "run", settings=settings) as server:
        address = f"127.0.0.1:{server.ports['grpc_inference']}"
        with grpc.insecure_channel(address) as channel:
            client, stub = Client(channel), health_pb2_grpc.HealthStub(channel)
            idle = iter(lambda: time.sleep(60), None)  # A client that sends nothing, and does not hang up.
            exchange = client.method(f"/{INFERENCE}/StreamPredictions2", "stream_stream")(idle, timeout=60)
            watch = stub.Watch(health(), timeout=60)
            assert next(watch).status == serving.SERVING
            request = prediction("obedient", data=b"hold %s" % str(gate).encode())
            held = client.method(f"/{INFERENCE}/Predictions").future(request, timeout=60)
            wait_until(lambda: (tmp_path / "gate.held").exists())
            os.kill(server.pid, signal.SIGTERM)
            assert next(watch).status == serving.NOT_SERVING
            assert stub.Check(health(), timeout=30).status == serving.NOT_SERVING
            ready = client.call(OPEN_INFERENCE, "ServerReady", open_inference.ServerReadyRequest())
            assert not ready.ready
            assert "Unhealthy" in client.call(INFERENCE, "Ping", inference.Empty()).health
            gate.touch()
            assert held.result(30).prediction == b"held"
            assert list(watch) == []
            refused(lambda: next(exchange), Code.UNAVAILABLE)
        assert server.process.wait(30) == 0
    assert "Traceback" not in server.log()


def test_a_port_that_is_taken_is_an_error(server, store, tmp_path):
    settings = {"grpc_inference_port": str(server.ports["grpc_inference"]), "load_models": "none"}
    with pytest.raises(ServerError, match=r"gRPC cannot listen .* grpc_inference_port"):
        start(store, tmp_path / "run", settings=settings)
