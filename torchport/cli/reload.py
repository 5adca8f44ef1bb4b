"""The command `torchport reload`, and what `torchport ship` says of the servers that run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchport.cli import console as show

RUN = Path(".run")


def reload(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="NAME, NAME@VERSION or FILE.mar; what the server was started with if none."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="Of the management API; that of the server that runs from here if none."),
    ] = None,
    retire: Annotated[
        bool, typer.Option("--retire", help="Remove the versions that newer ones take the default from.")
    ] = False,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="The server's key_file.json, with tokens on.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds.")] = 600.0,
) -> None:
    """Have a running torchport serve pick up what its store holds now, without a restart."""
    from torchport.client import Client

    address = url or _management_url()
    with Client(management_url=address, retries=0, timeout=timeout, key_file=key_file) as client:
        done = client.reload(models or (), retire=retire)
    show.say(f"{address}: {done['status']}")


def _management_url() -> str:
    from torchport.errors import ServerError
    from torchport.targets.running import running_servers

    servers = running_servers(RUN)
    if len(servers) > 1:
        urls = " or --url ".join(server.management for server in servers)
        raise ServerError(f"several servers run from here: --url {urls}")
    return servers[0].management if servers else "http://127.0.0.1:8081"


def serving_hint(name: str, store: Path) -> str:
    """The command that has this model served, for what is running from this folder."""
    from torchport.targets.running import running_servers

    servers = running_servers(RUN, store)
    torchserve = None if servers else _torchserve_port(store)
    if torchserve is not None:
        option = "" if torchserve == "8080" else f" --port {torchserve}"
        at = "" if torchserve == "8080" else f" --url http://127.0.0.1:{torchserve}"
        return (
            f"TorchServe runs on this store: torchport torchserve restart{option}; then: "
            f"torchport query {name}{at}"
        )
    if not servers:
        option = "" if store == Path("model_store") else f" --store {store}"
        return f"serve it: torchport serve{option}; then, in another terminal: torchport query {name}"
    server = servers[0]
    at = "" if server.inference == "http://127.0.0.1:8080" else f" --url {server.inference}"
    if server.watches:
        return f"the server at {server.inference} picks it up by itself; then: torchport query {name}{at}"
    which = f" --url {server.management}" if len(running_servers(RUN)) > 1 else ""
    return (
        f"a server runs on this store ({server.inference}): torchport reload{which}; then: "
        f"torchport query {name}{at}"
    )


def _torchserve_port(store: Path) -> str | None:
    """The port of a TorchServe that `torchport torchserve` has started on this store; None without one."""
    from torchport.properties import read_properties
    from torchport.targets.torchserve import running

    for folder in sorted(RUN.glob("torchserve-*")):
        config = folder / "config.properties"
        if not config.is_file() or running(folder) is None:
            continue
        if Path(read_properties(config).get("model_store", "")) == store.resolve():
            return folder.name.removeprefix("torchserve-")
    return None
