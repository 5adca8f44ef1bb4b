"""Who may call: keys, TLS, certificates of clients."""

from functools import partial

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.certificates import tls_settings
from tests.server.grpc.calls import Code, refused
from tests.server.grpc_client import (
    INFERENCE,
    MANAGEMENT,
    OPEN_INFERENCE,
    Client,
    prediction,
)
from tests.server.guarded import addresses, guarded
from torchport.errors import ServerError
from torchport.server.grpc.messages import management, open_inference
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server


def guarded_linear(store, run, **settings):
    return guarded(run, {"model_store": str(store.path), "load_models": "linear-1.0.mar", **settings})


def grpc_tls(certificates):
    return {"enable_grpc_ssl": "true", **tls_settings(certificates)}


def test_keys_over_tls(store, grpc_server, certificates, tmp_path):
    settings = {"grpc_server": grpc_server, "disable_token_authorization": "false", **grpc_tls(certificates)}
    with guarded_linear(store, tmp_path / "run", **settings) as server:
        ports = server.ports
        trusted = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
        key = {kind: [("authorization", f"Bearer {found}")] for kind, found in server.keys().items()}
        with (
            grpc.secure_channel(f"127.0.0.1:{ports['grpc_inference']}", trusted) as channel,
            grpc.secure_channel(f"127.0.0.1:{ports['grpc_management']}", trusted) as managing,
        ):
            client, manager, request = Client(channel), Client(managing), prediction("linear", data=b"[4.0]")
            metadata = open_inference.ModelMetadataRequest(name="linear")
            stream = client.method(f"/{INFERENCE}/StreamPredictions", "unary_stream")
            for given in ([], key["management"], [("authorization", "Bearer ")], [("authorization", "x")]):
                for call in (
                    partial(client.call, INFERENCE, "Predictions", request, metadata=given),
                    partial(client.call, OPEN_INFERENCE, "ModelMetadata", metadata, metadata=given),
                    partial(next, stream(request, metadata=given, timeout=30)),
                ):
                    refused(call, Code.UNAUTHENTICATED)
            assert client.call(INFERENCE, "Predictions", request, metadata=key["inference"]).prediction
            listing = management.ListModelsRequest()
            for given in ([], key["inference"]):
                call = partial(manager.call, MANAGEMENT, "ListModels", listing, metadata=given)
                refused(call, Code.UNAUTHENTICATED)
            listed = manager.call(MANAGEMENT, "ListModels", listing, metadata=key["management"])
            assert "linear" in listed.msg
            # Without enable_model_api nothing comes or goes.
            for name, change in (
                ("RegisterModel", management.RegisterModelRequest(url="linear-1.0.mar")),
                ("UnregisterModel", management.UnregisterModelRequest(model_name="linear")),
            ):
                call = partial(manager.call, MANAGEMENT, name, change, metadata=key["management"])
                refused(call, Code.PERMISSION_DENIED)
            # Who probes a container has no key.
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status
        with grpc.insecure_channel(f"127.0.0.1:{ports['grpc_inference']}") as channel:
            refused(lambda: Client(channel).predict("linear", data=b"[4.0]"), Code.UNAVAILABLE)


def test_clients_with_certificates_only(store, grpc_server, certificates, tmp_path):
    settings = {"grpc_server": grpc_server, **grpc_tls(certificates), **addresses("https")}
    settings["client_ca_file"] = str(certificates / "ca.pem")
    authority, mine, key = (
        (certificates / name).read_bytes() for name in ("ca.pem", "client.pem", "client.key")
    )
    with guarded_linear(store, tmp_path / "run", **settings) as server:
        address = f"127.0.0.1:{server.ports['grpc_inference']}"
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, mine)) as channel:
            assert Client(channel).predict("linear", data=b"[4.0]")
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(authority)) as channel:
            refused(lambda: Client(channel).predict("linear", data=b"[4.0]"), Code.UNAVAILABLE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"enable_grpc_ssl": "true"}, "enable_grpc_ssl needs certificate_file"),
        (
            {"enable_grpc_ssl": "true", "certificate_file": "none.pem", "private_key_file": "none.key"},
            "cannot be read",
        ),
        (
            {"enable_grpc_ssl": "true", "certificate_file": __file__, "private_key_file": __file__},
            "cannot be read",
        ),
    ],
)
def test_a_server_that_cannot_have_its_tls_does_not_start(store, tmp_path, settings, said):
    with pytest.raises(ServerError, match=said):
        start(store, tmp_path / "run", settings={"load_models": "none", **settings})


def test_open_grpc_beside_an_api_that_asks_clients_for_certificates_is_refused(store, certificates, tmp_path):
    guard = {**tls_settings(certificates), **addresses("https"), "enable_grpc_ssl": "false"}
    guard["client_ca_file"] = str(certificates / "ca.pem")
    with pytest.raises(ServerError, match="gRPC without TLS has none"):
        start(store, tmp_path / "run", settings={**guard, "grpc_inference_address": "0.0.0.0"})
