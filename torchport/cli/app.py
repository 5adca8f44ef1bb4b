"""The `torchport` command: one subcommand per stage, each calling one function and printing its result.

    torchport ship linear

Exit codes: 0 done, 1 a check said no, 2 what was given is wrong.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from torchport.cli import console as show
from torchport.cli import stages, torchserve
from torchport.cli.given_recipe import TAKES_PARAMETERS, given_recipe
from torchport.cli.options import (
    CACHE,
    HELP_OPTIONS,
    STORE,
    CacheOpt,
    ForceOpt,
    ModelArg,
    ParamOpt,
    PrecisionOpt,
    RecipeArg,
    SeedOpt,
    ServerOpt,
    StoreOpt,
    VersionOpt,
    WeightsOpt,
)
from torchport.cli.quantize import quantize
from torchport.cli.reload import reload, serving_hint
from torchport.cli.reporting import reported_errors
from torchport.cli.serve import serve
from torchport.cli.serve_options import ServeCommand
from torchport.cli.tune import tune
from torchport.errors import ArchiveError
from torchport.store.folders import Store
from torchport.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)
app.add_typer(torchserve.app, name="torchserve")
app.command(cls=ServeCommand)(serve)
app.command()(reload)
app.command(context_settings=TAKES_PARAMETERS)(quantize)
app.command(context_settings=TAKES_PARAMETERS)(tune)


def main() -> None:
    """Run the command; an error of ours is one message on stderr and its exit code."""
    with reported_errors():
        app()


def _print_version(wanted: bool) -> None:
    if wanted:
        show.say(f"torchport {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and end.")
    ] = False,
) -> None:
    """From a PyTorch training script to a served, verified endpoint."""


@app.command(context_settings=TAKES_PARAMETERS)
def train(
    ctx: typer.Context,
    recipe: RecipeArg,
    seed: SeedOpt = 0,
    weights: WeightsOpt = None,
    force: ForceOpt = False,
    keep: Annotated[
        bool,
        typer.Option("--keep-weights", help="Train nothing: the recipe has changed, its weights have not."),
    ] = False,
    store: StoreOpt = STORE,
    cache: CacheOpt = CACHE,
) -> None:
    """Train a recipe: weights.pt and training.json. Other options are the recipe's own parameters."""
    target = Store(store)
    if keep and (force or weights is not None):
        raise typer.BadParameter(
            "--keep-weights trains nothing and takes no others: without --force, --weights"
        )
    loaded = given_recipe(ctx, recipe, target, cache, as_trained=keep)
    stages.train(loaded, target, seed, weights, force, keep=keep)


@app.command(context_settings=TAKES_PARAMETERS)
def export(
    ctx: typer.Context,
    recipe: RecipeArg,
    force: ForceOpt = False,
    store: StoreOpt = STORE,
    cache: CacheOpt = CACHE,
) -> None:
    """Export the trained model: TorchScript, ONNX, torch.export."""
    target = Store(store)
    stages.export(given_recipe(ctx, recipe, target, cache), target, force)


@app.command(context_settings=TAKES_PARAMETERS)
def verify(
    ctx: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe's name, or the path of its file; every archive if none.")
    ] = None,
    force: ForceOpt = False,
    store: StoreOpt = STORE,
    cache: CacheOpt = CACHE,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="cpu, cuda; may be given twice.")
    ] = None,
    timeout: Annotated[
        int | None,
        typer.Option(
            "--timeout", min=1, max=604_800, help="Without a recipe: seconds for each archive; 1800 if none."
        ),
    ] = None,
) -> None:
    """Prove that every export computes what the trained model computes: parity.json.

    Without a recipe: prove every archive of the store again, on this machine, by what it carries.
    """
    target = Store(store)
    if recipe is None:
        if device:
            raise typer.BadParameter("--device is of a recipe: name one, or leave it out")
        stages.prove_store(target, force, timeout)
        return
    if timeout is not None:
        raise typer.BadParameter("--timeout is of a store's archives: leave it out, or the recipe")
    stages.verify(given_recipe(ctx, recipe, target, cache), target, force, device)


@app.command(context_settings=TAKES_PARAMETERS)
def package(
    ctx: typer.Context,
    recipe: RecipeArg,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", help="Whose artifacts travel, the first serving; may be repeated."),
    ] = None,
    precision: PrecisionOpt = None,
    shadow: Annotated[
        str | None,
        typer.Option("--shadow", help="Compare live traffic with another backend: torchscript=0.1; off."),
    ] = None,
    force: ForceOpt = False,
    store: StoreOpt = STORE,
    cache: CacheOpt = CACHE,
) -> None:
    """Make the archive of what has passed parity: NAME-VERSION.mar."""
    target = Store(store)
    stages.package(given_recipe(ctx, recipe, target, cache), target, backend, force, precision, shadow)


@app.command(context_settings=TAKES_PARAMETERS)
def check(
    ctx: typer.Context,
    recipe: RecipeArg,
    backend: Annotated[str | None, typer.Option("--backend", help="Another than the archive's.")] = None,
    precision: PrecisionOpt = None,
    server: Annotated[
        str, typer.Option("--server", help="What serves it: torchport; torchserve; or all, one by one.")
    ] = "torchport",
    store: StoreOpt = STORE,
    cache: CacheOpt = CACHE,
) -> None:
    """Serve the archive, ask it over HTTP, compare with the model in process: serving.json."""
    target = Store(store)
    stages.check(given_recipe(ctx, recipe, target, cache), target, backend, server, precision)


@app.command(context_settings=TAKES_PARAMETERS)
def ship(
    ctx: typer.Context,
    recipe: RecipeArg,
    seed: SeedOpt = 0,
    weights: WeightsOpt = None,
    force: ForceOpt = False,
    server: ServerOpt = "torchport",
    store: StoreOpt = STORE,
    cache: CacheOpt = CACHE,
) -> None:
    """All of it: train, export, verify, package, check; prints a running server's answers.

    Other options are the recipe's own parameters: torchport list shows them.
    """
    target = Store(store)
    loaded = given_recipe(ctx, recipe, target, cache, as_trained=False)
    stages.ship(loaded, target, seed, weights, force, server)
    show.say(serving_hint(loaded.name, store))


@app.command()
def zoo(
    listed: Annotated[Path, typer.Argument(help="A YAML list of recipes, such as export/zoo.yaml.")],
    seed: SeedOpt = 0,
    store: StoreOpt = STORE,
    cache: CacheOpt = CACHE,
) -> None:
    """Ship every recipe of a list; a table of metrics, goals, exports. Exit 1 if any misses."""
    from torchport.cli.zoo import read_list, ship_all

    rows = []
    for row in ship_all(read_list(listed), Store(store), seed=seed, cache=cache, show=show.progress):
        show.zoo_row(row)
        rows.append(row)
    show.zoo(rows)
    if not rows or not all(row.passed for row in rows):
        raise typer.Exit(1)


@app.command()
def infer(
    name: ModelArg,
    input_: Annotated[
        str | None, typer.Option("--input", "--data", help="A file or JSON; else the model's own sample.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file for the answer, such as a picture.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N.")] = "auto",
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="How often, for the latency.")] = 100,
    param: ParamOpt = None,
    version: VersionOpt = None,
    store: StoreOpt = STORE,
) -> None:
    """Ask a model without a server, with ONNX Runtime alone: answer, provider, latency."""
    from torchport.archive.inference import find_archive, read_input
    from torchport.archive.inference import infer as run

    archive = find_archive(Store(store), name, version)
    request = read_input(input_, archive)
    request = replace(request, params={**request.params, **_pairs(param or [])})
    result = run(archive, request, device=device, repeat=repeat)
    show.answer(result.answer, output)
    show.say(f"provider: {', '.join(sorted(set(result.providers.values())))}")
    show.say(
        f"latency: p50 {result.percentile_ms(50):.3f} ms, p99 {result.percentile_ms(99):.3f} ms "
        f"({repeat} runs)"
    )


@app.command()
def query(
    name: ModelArg,
    data: Annotated[
        str | None, typer.Option("--data", "--input", help="A file or JSON; else the model's own sample.")
    ] = None,
    version: VersionOpt = None,
    url: Annotated[
        str, typer.Option("--url", envvar="TORCHPORT_URL", help="Of the server.")
    ] = "http://127.0.0.1:8080",
    param: ParamOpt = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="TorchServe's key_file.json, with tokens on.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Ask /explanations: why this answer (TorchScript backend).")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file for the answer, such as a picture.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds.")] = 60.0,
    store: StoreOpt = STORE,
) -> None:
    """Ask a running server; prints the answer."""
    from torchport.archive.inference import find_archive, read_input
    from torchport.client import Client

    request = read_input(data, find_archive(Store(store), name, version) if data is None else None)
    params = {**request.params, **_pairs(param or [])}
    with Client(url, timeout=timeout, key_file=key_file) as client:
        answer = client.predict(
            name,
            json=request.json,
            body=request.body,
            content_type=request.content_type,
            params=params,
            version=version,
            explain=explain,
        )
    show.answer(answer, output)


@app.command()
def inspect(archive: Annotated[Path, typer.Argument(help="A .mar file.")]) -> None:
    """Print what is in an archive and whether its hashes hold. Runs nothing that is in it."""
    from torchport.archive.contents import inspect_archive
    from torchport.store.serving_record import records_beside

    contents = inspect_archive(archive)
    try:
        show.archive(contents)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise ArchiveError(
            f"{archive}: a record or an option in it is not of torchport's shape ({err!r})"
        ) from err
    show.served(records_beside(contents.path, contents.name, contents.version))
    if contents.problems:
        raise typer.Exit(1)


@app.command("list")
def list_recipes(store: StoreOpt = STORE) -> None:
    """The recipes that can be named, with their state in the store."""
    from torchport.cli.overview import overview

    show.recipes(overview(Store(store)))


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Of the model, and of the file NAME.py.")],
    handler: Annotated[bool, typer.Option("--handler", help="Write a handler of its own, too.")] = False,
    folder: Annotated[Path, typer.Option("--folder", help="Where to write.")] = Path(),
) -> None:
    """Write a recipe to start from, which trains and ships as it is."""
    from torchport.recipe.scaffold import scaffold

    for path in scaffold(name, folder, with_handler=handler):
        show.say(f"wrote {path}")
    show.say(f"next: torchport ship {folder / name}.py")


def _pairs(given: list[str]) -> dict[str, str]:
    wrong = [pair for pair in given if "=" not in pair]
    if wrong:
        raise typer.BadParameter(f"--param {escape(wrong[0])}: name=value is expected")
    return dict(pair.split("=", 1) for pair in given)
