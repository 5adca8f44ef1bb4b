"""The command `torchport serve`; `main` runs it without loading the other commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from torchport.cli.options import HELP_OPTIONS, STORE, StoreOpt
from torchport.cli.reporting import reported_errors
from torchport.cli.serve_options import ServeCommand, configuration, overridden, without_effect

_UNUSED = "TorchServe's; no effect, the log says why"


def main() -> None:
    """Run `torchport serve` with the process's arguments."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, context_settings=HELP_OPTIONS)
    app.command(cls=ServeCommand)(serve)
    with reported_errors():
        app(sys.argv[2:], prog_name="torchport serve")


def serve(
    store: StoreOpt = STORE,
    ts_config: Annotated[
        Path | None, typer.Option("--ts-config", help="a config.properties, as TorchServe reads it")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            help="what to load: all, none, or names: NAME, NAME@VERSION, FILE.mar, AS=NAME,... (or by spaces)"
        ),
    ] = None,
    model_store: Annotated[
        Path | None, typer.Option("--model-store", help="the same as --store, as TorchServe calls it")
    ] = None,
    ncs: Annotated[
        bool,
        typer.Option("--ncs", "--no-config-snapshots", help="forget models of an earlier run, keep none"),
    ] = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="always so; kept for TorchServe's command lines")
    ] = True,
    host: Annotated[str | None, typer.Option(help="the address for all three ports")] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=64000, help="inference, 8080; the others move along; 0 for any that are free"
        ),
    ] = None,
    management_port: Annotated[int | None, typer.Option(min=0, max=65535, help="management")] = None,
    metrics_port: Annotated[int | None, typer.Option(min=0, max=65535, help="metrics")] = None,
    grpc: Annotated[
        bool | None, typer.Option("--grpc/--no-grpc", help="the gRPC APIs, on 7070 and 7071")
    ] = None,
    enable_model_api: Annotated[
        bool, typer.Option("--enable-model-api", help="let clients register and remove models")
    ] = False,
    disable_token_auth: Annotated[
        bool,
        typer.Option(
            "--disable-token-auth", "--dt", help="no tokens; on the loopback address that is so anyway"
        ),
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="listen for strangers with neither tokens nor TLS")
    ] = False,
    access_log: Annotated[bool, typer.Option("--access-log", help="a line for every request")] = False,
    log_format: Annotated[str | None, typer.Option(help="text or json")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="pick up new and changed archives of the store by itself")
    ] = False,
    drain_time: Annotated[
        float | None,
        typer.Option("--drain-time", min=0, help="seconds for which it still listens after SIGTERM"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="folder of its state; .run/serve-PORT unless given")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help=_UNUSED)] = False,
    stop: Annotated[bool, typer.Option("--stop", help="refused: SIGTERM ends the server")] = False,
    workflow_store: Annotated[Path | None, typer.Option("--workflow-store", help=_UNUSED)] = None,
    log_config: Annotated[Path | None, typer.Option("--log-config", help=_UNUSED)] = None,
    cpp_log_config: Annotated[Path | None, typer.Option("--cpp-log-config", help=_UNUSED)] = None,
    plugins_path: Annotated[str | None, typer.Option("--plugins-path", "--ppath", help=_UNUSED)] = None,
) -> None:
    """Serve the store's archives by TorchServe's REST and gRPC APIs, without Java, until SIGTERM."""
    from torchport.errors import ServerError
    from torchport.properties import read_properties
    from torchport.server.main import run as run_server
    from torchport.server.models.named_archives import require_named_archives, require_store
    from torchport.server.settings.reading import environment_settings, settings_from

    if stop:
        raise ServerError("--stop: a server is ended by SIGTERM, which its service manager or kill PID sends")
    unused = {
        "--start": start,
        "--workflow-store": workflow_store,
        "--log-config": log_config,
        "--cpp-log-config": cpp_log_config,
        "--plugins-path": plugins_path,
    }
    notes = without_effect(unused)
    config = configuration(ts_config, notes)
    properties = read_properties(config, os.environ) if config else {}
    ports = {"inference": port, "management": management_port, "metrics": metrics_port}
    given = _given(
        model_store=model_store or (store if store != STORE or "model_store" not in properties else None),
        load_models=models,
        enable_grpc=grpc,
        enable_model_api=enable_model_api or None,
        disable_token_authorization=disable_token_auth or None,
        insecure=insecure or None,
        access_log=access_log or None,
        watch_store=watch or None,
        log_format=log_format,
        drain_time=drain_time,
    )
    addresses = _addresses(properties, ports, host)
    of_environment = environment_settings(properties, os.environ)
    notes += overridden(given, ports, host, of_environment)
    settings = settings_from(properties, os.environ, given | addresses)
    named = {"model_store"} & {*properties, *of_environment} or model_store is not None or store != STORE
    require_store(settings, is_named=bool(named))
    if config is None and model_store is None:
        # TorchServe starts without what is missing; so does its command line here.
        require_named_archives(settings)
    folder = run or Path(".run") / f"serve-{settings.inference.port}"
    raise typer.Exit(
        run_server(
            settings, run_folder=folder, snapshots=not ncs, models_named=models is not None, notes=notes
        )
    )


def _given(**options: Path | str | float | bool | None) -> dict[str, str]:
    """The options that were given, as `config.properties` would write them; None: not given."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.items()
        if value is not None
    }


def _addresses(properties: dict[str, str], ports: dict[str, int | None], host: str | None) -> dict[str, str]:
    """The addresses with the given host and ports.

    Others are as in the file. Ports that neither sets are shifted along with the inference port, so
    that two servers can run side by side.
    """
    from torchport.server.settings.address import Address
    from torchport.server.settings.settings import ServerSettings

    defaults = ServerSettings()
    inference = ports["inference"]

    def port_of(default: int) -> int:
        if inference is None:
            return default
        return default + inference - defaults.inference.port if inference else 0

    found: dict[str, str] = {}
    for name, number in ports.items():
        key = f"{name}_address"
        default: Address = getattr(defaults, name)
        moved = Address(default.scheme, default.host, port_of(default.port))
        address = Address.parse(key, properties.get(key, str(moved)), default.port)
        chosen = address.port if number is None else number
        found[key] = str(Address(address.scheme, host or address.host, chosen))
    for name in ("grpc_inference", "grpc_management"):
        if host is not None:
            found[f"{name}_address"] = host
        if f"{name}_port" not in properties:
            found[f"{name}_port"] = str(port_of(getattr(defaults, name).port))
    return found
