"""A server of each kind for all tests of gRPC, and clients of its two ports."""

import shutil

import grpc
import pytest

from tests.server.archives import write_archive
from tests.server.grpc_client import (
    INFERENCE,
    Client,
    prediction,
)
from tests.server.waiting import wait_until
from torchport.server.settings.settings import GRPC_SERVERS
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

# Does what the field `data` says. Pieces are written as TorchServe's workers write them.
OBEDIENT = """
    import json
    import struct
    import time
    from pathlib import Path


    def piece(request_id, body):
        def chunk(data):
            return struct.pack("!i", len(data)) + data

        row = chunk(request_id.encode()) + chunk(b"") + struct.pack("!i", 200) + chunk(b"")
        return struct.pack("!i", 200) + chunk(b"") + row + struct.pack("!i", 0) + chunk(body) + b"\\xff" * 4


    def obey(row, index, context):
        verb, _, rest = bytes(row["data"]).decode().partition(" ")
        if verb == "count":
            for number in range(int(rest) - 1):
                context.cl_socket.sendall(piece(context.get_request_id(index), str(number).encode()))
            return str(int(rest) - 1)
        if verb == "pour":
            for _ in range(int(rest)):
                context.cl_socket.sendall(piece(context.get_request_id(index), bytes(1 << 16)))
            return "poured"
        if verb == "break":
            context.cl_socket.sendall(piece(context.get_request_id(index), b"a piece"))
            raise ValueError("broken")
        if verb == "hold":
            Path(rest + ".held").touch()
            while not Path(rest).exists():
                time.sleep(0.01)
            return "held"
        if verb == "note":
            path, text = rest.split()
            with open(path, "a") as file:
                file.write(text + "\\n")
            return "noted"
        if verb == "status":
            context.set_response_status(code=int(rest), phrase="no", idx=index)
            return {"code": int(rest), "message": "the handler says no"}
        if verb == "size":
            return bytes(int(rest))
        return {
            "fields": {name: [type(value).__name__, bytes(value).decode()] for name, value in row.items()},
            "headers": context.get_all_request_header(index),
        }


    def handle(data, context):
        return data and [obey(row, index, context) for index, row in enumerate(data)]
"""
ONE_WORKER = {"minWorkers": 1, "maxWorkers": 1}


@pytest.fixture(scope="package")
def store(linear_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grpc") / "store"
    folder.mkdir()
    shutil.copy(linear_archive, folder)
    write_archive(folder, "obedient", OBEDIENT, config=ONE_WORKER)
    write_archive(folder, "bare", OBEDIENT)
    write_archive(folder, "narrow", OBEDIENT, config={**ONE_WORKER, "jobQueueSize": 1})
    return Store(folder)


@pytest.fixture(scope="package", params=GRPC_SERVERS)
def grpc_server(request):
    """Which server speaks HTTP/2."""
    return request.param


@pytest.fixture(scope="package")
def server(store, grpc_server, tmp_path_factory):
    settings = {
        "grpc_server": grpc_server,
        "enable_model_api": "true",
        "max_request_size": "200000",
        "max_response_size": "100000",
        "access_log": "true",
    }
    with start(store, tmp_path_factory.mktemp("run"), settings=settings) as server:
        yield server


@pytest.fixture(scope="package")
def client(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_inference']}") as channel:
        yield Client(channel)


@pytest.fixture(scope="package")
def manager(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc_management']}") as channel:
        yield Client(channel)


@pytest.fixture
def hold(client, tmp_path):
    """Occupy the one worker of a model until `release` is called; the call that does it."""
    gate = tmp_path / "gate"

    class Hold:
        def __call__(self, model):
            method = client.method(f"/{INFERENCE}/Predictions")
            call = method.future(prediction(model, data=b"hold %s" % str(gate).encode()), timeout=60)
            wait_until(lambda: (tmp_path / "gate.held").exists())
            return call

        def release(self):
            gate.touch()

    hold = Hold()
    yield hold
    hold.release()
