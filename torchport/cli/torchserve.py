"""`torchport torchserve start`, `stop`, `restart` and `status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchport.cli import console as show
from torchport.cli.options import STORE, StoreOpt
from torchport.store.folders import Store

app = typer.Typer(no_args_is_help=True, help="Start and stop TorchServe on the store.")

RunOpt = Annotated[Path, typer.Option("--run", help="Where servers keep configuration, logs and pid.")]
PortOpt = Annotated[
    int, typer.Option("--port", min=1024, max=64000, help="Of predictions; the others move along.")
]
ConfigOpt = Annotated[
    Path | None, typer.Option("--ts-config", help="A config.properties; torchport's own unless given.")
]
RUN = Path(".run")


@app.command("start")
def start_server(
    store: StoreOpt = STORE,
    ts_config: ConfigOpt = None,
    port: PortOpt = 8080,
    run: RunOpt = RUN,
) -> None:
    """Start TorchServe on the store's archives and wait until every worker is ready."""
    from torchport.targets.torchserve import start
    from torchport.targets.torchserve_setup import Ports

    ports = Ports.starting_at(port)
    with show.working("starting TorchServe"):
        server = start(Store(store), _run_folder(run, port), config=ts_config, ports=ports)
    show.say(f"TorchServe is ready on http://127.0.0.1:{port} (pid {server.pid}, logs in {server.run})")
    if server.key_file.is_file():
        show.say(f"it asks for tokens: torchport query NAME --key-file {server.key_file}")
    for name, versions in Store(store).archives().items():
        *older, newest = versions
        also = f"; also {', '.join(older)}" if older else ""
        option = "" if port == 8080 else f" --url http://127.0.0.1:{port}"
        show.say(f"  {name} {newest}{also}: torchport query {name}{option}")
    show.say(f"stop it: torchport torchserve stop{'' if port == 8080 else f' --port {port}'}")


@app.command("restart")
def restart_server(
    store: StoreOpt = STORE,
    ts_config: ConfigOpt = None,
    port: PortOpt = 8080,
    run: RunOpt = RUN,
) -> None:
    """Start TorchServe on what the store holds now; one that runs on this port is stopped first."""
    from torchport.targets.torchserve import require_startable, running

    # Before the old one is stopped: what cannot start must not cost what runs.
    require_startable(Store(store), ts_config)
    if running(_run_folder(run, port)) is not None:
        stop_server(port, run)
    start_server(store, ts_config, port, run)


@app.command("stop")
def stop_server(port: PortOpt = 8080, run: RunOpt = RUN) -> None:
    """Stop the TorchServe that was started on this port."""
    from torchport.targets.torchserve import running

    server = running(_run_folder(run, port))
    if server is None:
        show.say(f"no TorchServe started by torchport runs on port {port} (another: torchserve --stop)")
        return
    with show.working("stopping TorchServe"):
        server.stop()
    show.say(f"TorchServe on port {port} has stopped")


@app.command("status")
def server_status(port: PortOpt = 8080, run: RunOpt = RUN) -> None:
    """Say whether the TorchServe on this port runs; exit 1 if it does not."""
    from torchport.targets.torchserve import running

    server = running(_run_folder(run, port))
    if server is None:
        show.say(f"no TorchServe started by torchport runs on port {port}")
        raise typer.Exit(1)
    show.say(f"TorchServe on http://127.0.0.1:{port} (pid {server.pid}, logs in {server.run})")
    with server.client() as client:
        for model in sorted(client.models()):
            for version in client.describe(model):
                ready = sum(w["status"] == "READY" for w in version["workers"])
                number, wanted = version["modelVersion"], version["minWorkers"]
                show.say(f"  {model} {number}: {ready} of {wanted} workers ready")


def _run_folder(run: Path, port: int) -> Path:
    return run / f"torchserve-{port}"
