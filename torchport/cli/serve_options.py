"""TorchServe's command line, as `torchport serve` takes it.

    torchport serve --start --ncs --models a=a.mar b=b.mar --dt --log-config log4j2.xml

What has no effect here is accepted, and the log says why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

NO_EFFECT: Mapping[str, str] = {
    "--start": "the server starts without it, and stays in the foreground",
    "--workflow-store": "there are no workflows here",
    "--log-config": "it is Log4j's: the log goes to stderr; --log-format and --access-log say how",
    "--cpp-log-config": "handlers here are in Python: nothing in C++ logs",
    "--plugins-path": "plugins are Java's: the server has none of their routes and metrics",
}
"""Options of TorchServe's that are accepted, and why they change nothing."""

_MODELS = "--models"
_DEFAULT_CONFIG = Path("config.properties")


class ServeCommand(TyperCommand):
    """The command of `torchport serve`: `--models` takes a list in one word or in several."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_models_joined(args))


def with_models_joined(args: list[str]) -> list[str]:
    """The arguments with the words after `--models` as one, parted by commas.

    >>> with_models_joined(["--models", "a=a.mar", "b=b.mar", "--ncs"])
    ['--models', 'a=a.mar,b=b.mar', '--ncs']
    """
    joined: list[str] = []
    for each in args:
        option, word = joined[-2:] if len(joined) > 1 else ("", "")
        if option == _MODELS and not (word.startswith("-") or each.startswith("-")):
            joined[-1] += f",{each}"
        else:
            joined.append(each)
    return joined


def without_effect(given: Mapping[str, object]) -> list[str]:
    """A line for the log for each given option that changes nothing; None and False: not given."""
    return [f"{name} has no effect: {NO_EFFECT[name]}" for name, value in given.items() if value]


def configuration(ts_config: Path | None, notes: list[str]) -> Path | None:
    """The `config.properties`: `TS_CONFIG_FILE`'s, else the given one, else that of the working directory.

    The order is TorchServe's. `notes` gets what might surprise.

    Raises:
        ServerError: the file that is named does not exist.
    """
    from torchport.errors import ServerError

    of_environment = os.environ.get("TS_CONFIG_FILE")
    config = Path(of_environment) if of_environment else ts_config
    if config is not None:
        if not config.is_file():
            by = "TS_CONFIG_FILE" if of_environment else "--ts-config"
            raise ServerError(f"no file {config}: {by} names a config.properties")
        if ts_config not in (None, config):
            notes.append(f"the settings are those of {config}: TS_CONFIG_FILE wins over --ts-config")
        return config
    if not _DEFAULT_CONFIG.is_file():
        return None
    notes.append(f"the settings are those of {_DEFAULT_CONFIG.resolve()}: --ts-config names another")
    return _DEFAULT_CONFIG


def overridden(
    given: Mapping[str, str],
    ports: Mapping[str, int | None],
    host: str | None,
    environment: Mapping[str, str],
) -> list[str]:
    """A line for the log for each variable that wins over what the command line says."""
    said = {*given, *(f"{name}_address" for name, number in ports.items() if number is not None or host)}
    return [
        f"{key} is its TS_* variable's: variables win over the command line (enable_envvars_config=true)"
        for key in sorted(said & environment.keys())
    ]
