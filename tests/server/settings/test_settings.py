"""What the server is told: TorchServe's keys, the environment, the command line, and what is wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torchport.errors import ServerError
from torchport.properties import parse_properties
from torchport.server.settings.address import Address
from torchport.server.settings.reading import settings_from
from torchport.server.settings.settings import ServerSettings

DOCUMENTED = """
    # As in TorchServe's documentation.
    inference_address=https://127.0.0.1:8443
    management_address=https://127.0.0.1:8444
    metrics_address=https://127.0.0.1:8445
    grpc_inference_address=127.0.0.1
    grpc_inference_port=9090
    enable_grpc_ssl=true
    private_key_file=mykey.key
    certificate_file=mycert.pem
    number_of_netty_threads=32
    job_queue_size=1000
    model_store=/home/model-server/model-store
    load_models=resnet-18=resnet-18.mar,squeezenet=squeezenet_v1.1.mar
    install_py_dep_per_model=true
    default_workers_per_model=2
    default_response_timeout=60
    unregister_model_timeout=240
    max_request_size=655350000
    limit_max_image_pixels=false
    allowed_urls=https://s3.amazonaws.com/.*,https://torchserve.pytorch.org/.*
    blacklist_env_vars=.*USERNAME.*|.*PASSWORD.*
    enable_metrics_api=false
    disable_system_metrics=true
    cors_allowed_origin=https://yourdomain.com
    cors_allowed_methods=GET, POST, PUT, OPTIONS
    cors_allowed_headers=X-Custom-Header
    vmargs=-Xmx1g -XX:+ExitOnOutOfMemoryError
    models={\\
      "noop": {\\
        "1.0": {\\
            "defaultVersion": true,\\
            "marName": "noop.mar",\\
            "minWorkers": 1,\\
            "maxWorkers": 1,\\
            "batchSize": 4,\\
            "maxBatchDelay": 100,\\
            "responseTimeout": 120\\
        }\\
      }\\
    }
"""


def test_a_file_as_torchserve_documents_it() -> None:
    settings = settings_from(parse_properties(DOCUMENTED), {})
    assert settings.http_addresses == tuple(
        Address("https", "127.0.0.1", port) for port in (8443, 8444, 8445)
    )
    assert settings.grpc_inference == Address("http", "127.0.0.1", 9090)
    assert settings.grpc_management == Address("http", "127.0.0.1", 7071)
    assert settings.enable_grpc_ssl
    assert settings.private_key_file == Path("mykey.key")
    assert settings.job_queue_size == 1000
    assert settings.load_models == "resnet-18=resnet-18.mar,squeezenet=squeezenet_v1.1.mar"
    assert settings.install_py_dep_per_model
    assert settings.default_workers_per_model == 2
    assert settings.max_request_size == 655_350_000
    assert not settings.limit_max_image_pixels
    assert settings.allowed_urls == ("https://s3.amazonaws.com/.*", "https://torchserve.pytorch.org/.*")
    assert not settings.enable_metrics_api
    assert settings.cors_allowed_methods == "GET, POST, PUT, OPTIONS"
    assert settings.models["noop"]["1.0"]["batchSize"] == 4
    assert settings.ignored == ()


def test_what_is_not_known_is_named_and_what_only_java_knows_is_not() -> None:
    properties = {"inference_adress": "http://127.0.0.1:1", "vmargs": "-Xmx1g", "ignored": "x", "zz": ""}
    settings = settings_from(properties, {})
    assert settings.ignored == ("ignored", "inference_adress", "zz")


def test_the_environment_counts_where_the_file_says_so() -> None:
    environ = {
        "TS_JOB_QUEUE_SIZE": "7",
        "TS_INFERENCE_ADDRESS": "http://127.0.0.1:1",
        "TS_GRPC_INFERENCE_PORT": "2",
        "TS_ALLOWED_URLS": "file:///a",
        "TS_ARCHIVE_ROOTS": "/",
        "TS_NO_SUCH_KEY": "x",
    }
    without = settings_from({"job_queue_size": "5"}, environ)
    assert (without.job_queue_size, without.inference.port) == (5, 8080)
    on = {"job_queue_size": "5", "enable_envvars_config": "true"}
    found = settings_from(on, environ)
    assert (found.job_queue_size, found.inference.port, found.grpc_inference.port) == (7, 1, 2)
    # One of TorchServe's own rules: who may set a variable may not widen what is loaded.
    assert found.allowed_urls == ServerSettings().allowed_urls
    assert found.archive_roots == ()
    assert settings_from({**on, "use_env_allowed_urls": "true"}, environ).allowed_urls == ("file:///a",)


def test_the_command_line_wins_over_the_file_and_the_environment_over_both() -> None:
    properties = {"job_queue_size": "5", "inference_address": "http://127.0.0.1:1"}
    given = {"job_queue_size": 7, "load_models": None, "inference_address": "http://127.0.0.1:2"}
    environ = {"TS_JOB_QUEUE_SIZE": "6", "TS_INFERENCE_ADDRESS": "http://127.0.0.1:3"}
    found = settings_from(properties, environ, given)
    assert (found.job_queue_size, found.load_models, found.inference.port) == (7, "all", 2)
    found = settings_from(properties | {"enable_envvars_config": "true"}, environ, given)
    assert (found.job_queue_size, found.inference.port) == (6, 3)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://127.0.0.1:8080", Address("http", "127.0.0.1", 8080)),
        ("https://localhost", Address("https", "localhost", 1)),
        ("HTTP://[::1]:8080/", Address("http", "::1", 8080)),
        (" http://my-host.example.org:1 ", Address("http", "my-host.example.org", 1)),
        ("http://127.0.0.1:0", Address("http", "127.0.0.1", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    found = Address.parse("inference_address", text, 1)
    assert found == address
    assert Address.parse("again", str(found), 2) == address


BAD = {
    "inference_address": [
        "8080",
        "127.0.0.1:8080",
        "ftp://127.0.0.1",
        "http://",
        "http://:8080",
        "http://a b",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:99999999999",
        "http://127.0.0.1:-1",
        "http://127.0.0.1:٨",
        "http://127.0.0.1:8080/path",
        "http://user@127.0.0.1",
        "http://a\nb",
        f"http://{'a' * 64}.org",
        "unix:/tmp/socket",
    ],
    "grpc_inference_port": ["-1", "65536", "x", ""],
    "enable_grpc": ["yes", "1", ""],
    "install_py_dep_per_model": ["perhaps"],
    "enable_envvars_config": ["on"],
    "job_queue_size": ["0", "-1", "1.5", "many", "", "٣", "1e3", "9" * 13, "1000001"],
    "default_workers_per_model": ["-1", "1025"],
    "max_workers_of_archive": ["0", "1025", "many"],
    "install_py_dep_from_anywhere": ["perhaps"],
    "allowed_hosts": ["http://example.org", "example.org:80", "*.example.org", "a b", "a,,é"],
    "default_response_timeout": ["0"],
    "default_startup_timeout": ["0"],
    "number_of_gpu": ["-1", "all"],
    "max_request_size": ["0", "999999999999"],
    "max_request_memory": ["0"],
    "max_response_size": ["0"],
    "max_header_size": ["0", "10"],
    "min_body_rate": ["0"],
    "max_connections": ["0"],
    "header_timeout": ["0", "nan", "inf", "-1", "1e9", "0x1"],
    "body_timeout": ["0"],
    "keep_alive_timeout": ["0"],
    "drain_time": ["-1", "nan", "soon"],
    "shutdown_timeout": ["-1"],
    "token_expiration_min": ["0", "-5"],
    "allowed_urls": ["file://(", "a,b)", "*"],
    "blacklist_env_vars": ["(", "*"],
    "cors_allowed_origin": ["https://a\r\nSet-Cookie: b", "\0", "https://\u20ac"],
    "cors_allowed_methods": ["GET\nPOST"],
    "cors_allowed_headers": ["X\x7f"],
    "models": ["{", "[]", "3", '{"a": 3}', '{"a": {"1.0": 3}}', "[" * 100_000],
    "model_snapshot": [
        "{",
        "[]",
        "{}",
        '{"models": []}',
        '{"models": {"a": []}}',
        '{"models": {"a": {"1.0": {}}}}',
        '{"models": {"a": {"1.0": {"marName": 3}}}}',
        '{"models": {"a": {"1.0": {"marName": "a.mar", "minWorkers": "1"}}}}',
        '{"models": {"a": {"1.0": {"marName": "a.mar", "minWorkers": 100000}}}}',
        '{"models": {"a": {"1.0": {"marName": "a.mar", "batchSize": true}}}}',
    ],
}


@pytest.mark.parametrize(
    ("key", "text"), [(key, text) for key in BAD for text in BAD[key]], ids=lambda value: repr(value)[:40]
)
def test_a_value_that_is_none_is_refused_by_its_key(key: str, text: str) -> None:
    with pytest.raises(ServerError, match=key) as caught:
        settings_from({key: text}, {})
    assert len(str(caught.value)) < 500 or len(text) > 400


def test_defaults_are_within_their_own_bounds_and_known_by_name() -> None:
    settings = ServerSettings()
    assert settings.ignored == ()
    assert not settings.tokens
    settings.require_safe()


# Who may connect.

HOST = "http://0.0.0.0:1"


@pytest.mark.parametrize(
    ("given", "tokens", "safe"),
    [
        ({}, False, True),
        ({"inference_address": "http://127.9.9.9:1"}, False, True),
        ({"inference_address": "http://[::1]:1"}, False, True),
        ({"inference_address": HOST}, True, True),
        ({"management_address": HOST}, True, True),
        ({"metrics_address": "http://[::]:1"}, True, True),
        ({"metrics_address": "http://example.org:1"}, True, True),
        ({"grpc_inference_address": "0.0.0.0"}, True, True),
        ({"grpc_inference_address": "0.0.0.0", "enable_grpc": "false"}, False, True),
        ({"inference_address": HOST, "disable_token_authorization": "true"}, False, False),
        ({"grpc_management_address": "::", "disable_token_authorization": "true"}, False, False),
        ({"inference_address": HOST, "insecure": "true"}, False, True),
        ({"inference_address": HOST, "disable_token_authorization": "false", "insecure": "true"}, True, True),
        ({"disable_token_authorization": "false"}, True, True),
        ({"inference_address": "https://0.0.0.0:1", "client_ca_file": "ca.pem"}, False, True),
        # TLS alone keeps nobody out.
        ({"inference_address": "https://0.0.0.0:1"}, True, True),
        ({"inference_address": "https://0.0.0.0:1", "disable_token_authorization": "true"}, False, False),
        # A CA guards what speaks TLS, and nothing else.
        (
            {
                "inference_address": "https://0.0.0.0:1",
                "management_address": "http://0.0.0.0:2",
                "client_ca_file": "ca.pem",
            },
            True,
            True,
        ),
        (
            {
                "inference_address": HOST,
                "management_address": "https://127.0.0.1:2",
                "client_ca_file": "ca.pem",
                "disable_token_authorization": "true",
            },
            False,
            False,
        ),
        ({"grpc_inference_address": "0.0.0.0", "client_ca_file": "ca.pem"}, True, True),
        (
            {"grpc_inference_address": "0.0.0.0", "client_ca_file": "ca.pem", "enable_grpc_ssl": "true"},
            False,
            True,
        ),
    ],
)
def test_strangers_are_kept_out(given: dict[str, str], tokens: bool, safe: bool) -> None:
    settings = settings_from(given, {})
    assert settings.tokens is tokens
    if safe:
        settings.require_safe()
        return
    with pytest.raises(
        ServerError, match="strangers can connect, and nothing keeps them out: turn tokens on"
    ):
        settings.require_safe()


def test_snapshots_of_torchserve_are_taken_as_they_are() -> None:
    entry: dict[str, Any] = {
        "defaultVersion": True,
        "marName": "noop.mar",
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 1,
        "maxBatchDelay": 100,
        "responseTimeout": 120,
        "startupTimeout": 0,
        "runtimeType": "python",
    }
    snapshot = {"name": "20210101-snapshot.cfg", "modelCount": 1, "models": {"noop": {"1.0": entry}}}
    assert settings_from({"model_snapshot": json.dumps(snapshot)}, {}).model_snapshot == snapshot
