"""The settings of `torchport serve`, with TorchServe's names and defaults.

    settings = ServerSettings(job_queue_size=10)
    settings.inference                   # Address("http", "127.0.0.1", 8080)

They come from `config.properties`, `TS_*` variables and the command line. Unknown keys are listed in
`settings.ignored`, which is logged once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchport.errors import ServerError
from torchport.server.settings.address import Address
from torchport.server.settings.checks import (
    MAX_WORKERS,
    require_header_value,
    require_host_name,
    require_model_settings,
    require_one_of,
    require_pattern,
    require_port,
    require_range,
    require_snapshot,
)

_YEARS = 1e9
_BYTES = 1 << 33
"""Maximum size in bytes of a request or an answer: half of a frame between server and worker."""

RANGES: Mapping[str, tuple[float, float]] = {
    "default_workers_per_model": (0, MAX_WORKERS),
    "max_workers_of_archive": (1, MAX_WORKERS),
    "default_response_timeout": (1, _YEARS),
    "default_startup_timeout": (1, _YEARS),
    "unregister_model_timeout": (0, _YEARS),
    "job_queue_size": (1, 1_000_000),
    "number_of_gpu": (0, 1024),
    "max_request_size": (1, _BYTES),
    "max_request_memory": (1, 1 << 40),
    "max_response_size": (1, _BYTES),
    "max_header_size": (1024, 1 << 24),
    "header_timeout": (0.1, _YEARS),
    "body_timeout": (0.1, _YEARS),
    "min_body_rate": (1, 1 << 30),
    "keep_alive_timeout": (0.1, _YEARS),
    "max_connections": (1, 1_000_000),
    "drain_time": (0, _YEARS),
    "shutdown_timeout": (0, _YEARS),
    "token_expiration_min": (0.001, _YEARS),
}
"""Minimum and maximum of each numeric setting; other values are refused."""

GRPC_SERVERS = ("torchport", "grpcio")
"""What speaks HTTP/2 with gRPC's clients: the server's own code, or grpcio."""

_CORS = ("cors_allowed_origin", "cors_allowed_methods", "cors_allowed_headers")
_DEFAULT_URLS = ("file://.*", "http(s)?://.*")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of one server.

    Sizes are bytes, times seconds unless their name says otherwise. Settings that TorchServe has too keep
    its names. They keep its defaults, except where those are unsafe.
    """

    inference: Address = Address("http", "127.0.0.1", 8080)
    management: Address = Address("http", "127.0.0.1", 8081)
    metrics: Address = Address("http", "127.0.0.1", 8082)
    grpc_inference: Address = Address("http", "127.0.0.1", 7070)
    grpc_management: Address = Address("http", "127.0.0.1", 7071)
    enable_grpc: bool = True
    enable_grpc_ssl: bool = False
    grpc_server: str = "torchport"

    model_store: Path = Path("model_store")
    archive_roots: tuple[str, ...] = ()
    """Folders that links in the store may lead to, beside the store itself."""
    load_models: str = "all"
    watch_store: bool = False
    models: Mapping[str, Any] = field(default_factory=dict)
    model_snapshot: Mapping[str, Any] | None = None
    allowed_urls: tuple[str, ...] = _DEFAULT_URLS
    default_service_handler: str | None = None
    service_envelope: str = ""
    install_py_dep_per_model: bool = False
    install_py_dep_from_anywhere: bool = False
    require_certificate: bool = False
    require_local_parity: bool = False
    require_goals: bool = False

    default_workers_per_model: int | None = None
    max_workers_of_archive: int | None = None
    default_response_timeout: int = 120
    default_startup_timeout: int = 120
    unregister_model_timeout: int = 120
    job_queue_size: int = 100
    number_of_gpu: int | None = None

    max_request_size: int = 6_553_500
    max_request_memory: int = 1 << 30
    max_response_size: int = 6_553_500
    max_header_size: int = 65_536
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    min_body_rate: int = 1024
    keep_alive_timeout: float = 120.0
    max_connections: int = 10_000
    drain_time: float = 0.0
    shutdown_timeout: float = 20.0
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
    metrics_config: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    insecure: bool = False

    access_log: bool = False
    opentelemetry: bool = False
    log_format: str = "text"
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key, (least, most) in RANGES.items():
            require_range(key, getattr(self, key), least, most)
        require_port("grpc_inference_port", self.grpc_inference.port)
        require_port("grpc_management_port", self.grpc_management.port)
        require_one_of("grpc_server", self.grpc_server, GRPC_SERVERS)
        for pattern in self.allowed_urls:
            require_pattern("allowed_urls", pattern)
        require_pattern("blacklist_env_vars", self.blacklist_env_vars)
        for name in self.allowed_hosts:
            require_host_name("allowed_hosts", name)
        for key in _CORS:
            require_header_value(key, getattr(self, key))
        require_model_settings(self.models)
        if self.model_snapshot is not None:
            require_snapshot("model_snapshot", self.model_snapshot)

    @property
    def tokens(self) -> bool:
        """Whether requests need a token.

        If the settings do not say, tokens are on when an address is open, unless `insecure` is set.
        """
        if self.disable_token_authorization is not None:
            return not self.disable_token_authorization
        return bool(self.open_addresses) and not self.insecure

    @property
    def request_memory(self) -> int:
        """Maximum bytes of all requests' bodies together: at least of one as large as may be."""
        return max(self.max_request_memory, self.max_request_size)

    @property
    def http_addresses(self) -> tuple[Address, Address, Address]:
        return self.inference, self.management, self.metrics

    @property
    def open_addresses(self) -> tuple[Address, ...]:
        """Addresses beyond loopback that need no client certificate.

        A clients' CA guards only addresses that speak TLS.
        """
        mutual = self.client_ca_file is not None
        found = [address for address in self.http_addresses if not (mutual and address.scheme == "https")]
        if self.enable_grpc and not (mutual and self.enable_grpc_ssl):
            found += [self.grpc_inference, self.grpc_management]
        return tuple(address for address in found if not address.is_loopback)

    def require_safe(self) -> None:
        """Refuse settings that would let strangers in by accident.

        Raises:
            ServerError: an address beyond loopback has neither tokens nor client certificates.
        """
        if not self.open_addresses or self.insecure or self.tokens:
            return
        raise ServerError(
            f"{', '.join(map(str, self.open_addresses))}: strangers can connect, and nothing keeps them out: "
            "turn tokens on (disable_token_authorization=false), give client_ca_file for mutual TLS, or say "
            "--insecure"
        )
