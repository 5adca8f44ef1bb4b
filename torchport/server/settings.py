"""What `torchport serve` is told: TorchServe's `config.properties`, `TS_*` variables, the command line.

    settings = settings_from(read_properties(path), os.environ, given={"inference_address": "..."})
    settings.inference                   # Address("http", "127.0.0.1", 8080)

A key that is not known here is named in `settings.ignored`, which the log tells of once.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torchport.errors import ServerError
from torchport.server.setting_checks import check

_ADDRESS = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-z:.%]+\]|[a-z0-9._-]+)(:(?P<port>[0-9]{1,6}))?/?", re.IGNORECASE
)
_DEFAULT_URLS = ("file://.*", "http(s)?://.*")


@dataclass(frozen=True)
class Address:
    """Where one of the APIs listens; port 0 lets the system choose."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, key: str, text: str, port: int) -> Address:
        """Read `http://127.0.0.1:8080`; `port` is the one where none is given.

        Raises:
            ServerError: something else.
        """
        match = _ADDRESS.fullmatch(text.strip())
        if match is None:
            hint = ": sockets of the file system are not supported" if text.startswith("unix:") else ""
            raise ServerError(f"{key}={text!r}{hint}: http://HOST:PORT or https://HOST:PORT is expected")
        number, host = int(match["port"] or port), match["host"].strip("[]")
        if number > 65535:
            raise ServerError(f"{key}={text!r}: a port is at most 65535")
        if any(len(label) > 63 for label in host.split(".")):
            raise ServerError(f"{key}={text!r}: no host has such a name")
        return cls(match["scheme"].lower(), host, number)

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def endpoint(self) -> str:
        """`HOST:PORT`, an IPv6 host in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.endpoint}"


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server. Sizes are bytes, times seconds unless their name says otherwise.

    Those that TorchServe has bear its names and, but for safety, its defaults.
    """

    inference: Address = Address("http", "127.0.0.1", 8080)
    management: Address = Address("http", "127.0.0.1", 8081)
    metrics: Address = Address("http", "127.0.0.1", 8082)
    grpc_inference: Address = Address("http", "127.0.0.1", 7070)
    grpc_management: Address = Address("http", "127.0.0.1", 7071)
    enable_grpc: bool = True
    enable_grpc_ssl: bool = False

    model_store: Path = Path("model_store")
    load_models: str = "all"
    models: Mapping[str, Any] = field(default_factory=dict)
    model_snapshot: Mapping[str, Any] | None = None
    allowed_urls: tuple[str, ...] = _DEFAULT_URLS
    default_service_handler: str | None = None
    service_envelope: str = ""
    install_py_dep_per_model: bool = False
    require_certificate: bool = False
    require_local_parity: bool = False

    default_workers_per_model: int | None = None
    default_response_timeout: int = 120
    default_startup_timeout: int = 120
    unregister_model_timeout: int = 120
    job_queue_size: int = 100
    number_of_gpu: int | None = None

    max_request_size: int = 6_553_500
    max_response_size: int = 6_553_500
    max_header_size: int = 65_536
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    min_body_rate: int = 1024
    keep_alive_timeout: float = 120.0
    max_connections: int = 10_000
    shutdown_timeout: float = 60.0
    limit_max_image_pixels: bool = True
    decode_input_request: bool = True
    blacklist_env_vars: str = ""

    enable_metrics_api: bool = True
    disable_system_metrics: bool = False
    cors_allowed_origin: str = ""
    cors_allowed_methods: str = ""
    cors_allowed_headers: str = ""

    enable_model_api: bool = False
    disable_token_authorization: bool | None = None
    token_expiration_min: float = 60.0
    key_file: Path | None = None
    certificate_file: Path | None = None
    private_key_file: Path | None = None
    client_ca_file: Path | None = None
    insecure: bool = False

    access_log: bool = False
    opentelemetry: bool = False
    log_format: str = "text"
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self)

    @property
    def tokens(self) -> bool:
        """Whether requests need a token: asked for, or for want of anything else on an open address."""
        if self.disable_token_authorization is not None:
            return not self.disable_token_authorization
        return bool(self.open_addresses) and not self.insecure

    @property
    def http_addresses(self) -> tuple[Address, Address, Address]:
        return self.inference, self.management, self.metrics

    @property
    def open_addresses(self) -> tuple[Address, ...]:
        """Where strangers can connect without a certificate of theirs: a CA guards what speaks TLS only."""
        mutual = self.client_ca_file is not None
        found = [address for address in self.http_addresses if not (mutual and address.scheme == "https")]
        if self.enable_grpc and not (mutual and self.enable_grpc_ssl):
            found += [self.grpc_inference, self.grpc_management]
        return tuple(address for address in found if not address.is_loopback)

    def require_safe(self) -> None:
        """Refuse what would let strangers in by accident.

        Raises:
            ServerError: an address other than the loopback one with neither tokens nor client certificates.
        """
        if not self.open_addresses or self.insecure or self.tokens:
            return
        raise ServerError(
            f"{', '.join(map(str, self.open_addresses))}: strangers can connect, and nothing keeps them out: "
            "turn tokens on (disable_token_authorization=false), give client_ca_file for mutual TLS, or say "
            "--insecure"
        )


_IGNORED_QUIETLY = frozenset(
    """
    number_of_netty_threads netty_client_threads prefer_direct_buffer use_native_io io_ratio async_logging
    initial_worker_port initial_distribution_port vmargs enable_envvars_config use_env_allowed_urls
    metrics_mode metrics_config model_metrics_auto_detect model_server_home system_metrics_cmd
    metric_time_interval version tsConfigFile python workflow_store debug ts_open_inference_protocol
    grpc_inference_max_connection_age_ms grpc_management_max_connection_age_ms
    grpc_inference_max_connection_age_grace_ms grpc_management_max_connection_age_grace_ms
    """.split()  # noqa: SIM905
)
"""Keys of Java and netty, or of how TorchServe talks to its workers: nothing here could mean the same."""

_ADDRESS_KEYS = {"inference_address": 8080, "management_address": 8081, "metrics_address": 8082}
_GRPC_KEYS = {"grpc_inference": 7070, "grpc_management": 7071}


def settings_from(
    properties: Mapping[str, str],
    environ: Mapping[str, str],
    given: Mapping[str, Any] | None = None,
) -> ServerSettings:
    """The settings that a `config.properties`, the environment and the command line add up to.

    `TS_KEY` variables win over the file where it says `enable_envvars_config=true`, as TorchServe has it;
    `given`, the command line, wins over both.

    Raises:
        ServerError: a value that cannot be read; the message names the key.
    """
    values = dict(properties)
    if _boolean("enable_envvars_config", values.get("enable_envvars_config", "false")):
        values |= _from_environment(values, environ)
    values |= {key: str(value) for key, value in (given or {}).items() if value is not None}
    settings: dict[str, Any] = {}
    for key, port in _ADDRESS_KEYS.items():
        if key in values:
            settings[key.removesuffix("_address")] = Address.parse(key, values.pop(key), port)
    for name, port in _GRPC_KEYS.items():
        host = values.pop(f"{name}_address", "127.0.0.1")
        number = _integer(f"{name}_port", values.pop(f"{name}_port", str(port)))
        settings[name] = Address("http", host, number)
    known = {f.name: f for f in fields(ServerSettings)}
    ignored = []
    for key, text in values.items():
        if key in known and key != "ignored":
            settings[key] = _read(key, text)
        elif key not in _IGNORED_QUIETLY:
            ignored.append(key)
    return ServerSettings(**settings, ignored=tuple(sorted(ignored)))


def _from_environment(properties: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    names = {f.name for f in fields(ServerSettings)} | set(_ADDRESS_KEYS)
    names |= {f"{name}_{part}" for name in _GRPC_KEYS for part in ("address", "port")}
    if properties.get("use_env_allowed_urls", "false").lower() != "true":
        names.discard("allowed_urls")
    found = {name: environ.get(f"TS_{name.upper()}") for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _read(key: str, text: str) -> Any:
    """A value by the type of its field."""
    kind = next(f.type for f in fields(ServerSettings) if f.name == key)
    if kind in ("bool", "bool | None"):
        return _boolean(key, text)
    if kind in ("int", "int | None"):
        return _integer(key, text)
    if kind == "float":
        return _number(key, text)
    if kind in ("Path", "Path | None"):
        return Path(text)
    if kind == "tuple[str, ...]":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind.startswith("Mapping"):
        return _mapping(key, text)
    return text


def _boolean(key: str, text: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise ServerError(f"{key}={text!r}: true or false is expected")
    return text.strip().lower() == "true"


def _integer(key: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text.strip()):
        raise ServerError(f"{key}={text!r}: a whole number is expected")
    return int(text)


def _number(key: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text.strip()):
        raise ServerError(f"{key}={text!r}: a number is expected")
    return float(text)


def _mapping(key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise ServerError(f"{key}: not JSON ({err})") from err
    if not isinstance(value, dict):
        raise ServerError(f"{key}: a JSON object is expected")
    return value
