"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

RecipeArg = Annotated[str, typer.Argument(help="A recipe's name, or the path of its file.")]
ModelArg = Annotated[str, typer.Argument(help="A model's name in the store.")]
StoreOpt = Annotated[Path, typer.Option("--store", envvar="TORCHPORT_STORE", help="The model store.")]
ForceOpt = Annotated[bool, typer.Option("--force", help="Do it again even if nothing changed.")]
SeedOpt = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of data, weights, order.")]
WeightsOpt = Annotated[
    Path | None, typer.Option("--weights", help="A state_dict to take in training's place.")
]
CacheOpt = Annotated[
    Path, typer.Option("--cache", envvar="TORCHPORT_CACHE", help="Where data sets are kept.")
]
ParamOpt = Annotated[
    list[str] | None, typer.Option("--param", help="A field beside the body, such as k=3; may be repeated.")
]
VersionOpt = Annotated[str | None, typer.Option("--version", help="The newest unless given.")]
ServerOpt = Annotated[
    str, typer.Option("--server", help="What serves it: torchport, or torchserve, a real TorchServe.")
]
PrecisionOpt = Annotated[
    str | None,
    typer.Option("--precision", help="float32, or float16, bfloat16, int8 where there are such graphs."),
]
STORE, CACHE = Path("model_store"), Path(".cache")

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
"""Typer's settings for every command."""
