"""`python -m bench`: measures, prints a table, keeps JSON and a picture; exit 1 where a target is missed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import chart, first_answer, installable, linear, machine, open_inference, report, resnet, scale
from bench.archives import Archives
from bench.errors import BenchmarkError
from bench.figures import Part
from bench.load import require_wrk
from bench.rounds import Effort
from torchport.errors import TorchportError

CACHE = Path(".cache") / "bench"
RESULTS = Path(__file__).parent / "results"
PARTS: dict[str, Callable[[Archives, Path, Effort], Part]] = {
    "A": linear.measure,
    "B": resnet.measure,
    "C": first_answer.measure,
    "D": scale.measure,
    "E": open_inference.measure,
    "F": installable.measure,
}
TITLES = {
    "A": "the linear model beside TorchServe, mosec and bare uvicorn",
    "B": "ResNet-18 beside TorchServe's image_classifier and a bare loop",
    "C": "the first answer, and memory",
    "D": "many models, idle connections, large bodies, batch sizes",
    "E": "tensors by the Open Inference Protocol beside Triton",
    "F": "servers that anyone can install: mosec, LitServe, BentoML, Ray Serve",
}


app = typer.Typer(add_completion=False)


@app.command()
def main(
    only: Annotated[str, typer.Option(help="Which parts, such as A,C.")] = "A,B,C,D,E,F",
    seconds: Annotated[int, typer.Option(min=1, help="Seconds of each run.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each contender.")] = 5,
    warm_up: Annotated[int, typer.Option(min=1, help="Seconds before, that do not count.")] = 10,
    results: Annotated[Path, typer.Option(help="The folder for the JSON and the picture.")] = RESULTS,
) -> None:
    """Measure torchport serve side by side with TorchServe, mosec and bare uvicorn."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)  # A file has room for whole lines.
    try:
        letters = _letters(only)
        require_wrk()
        effort = Effort(seconds=seconds, rounds=rounds, warm_up=warm_up)
        found = machine.describe()
        if found["busy_percent"] > machine.BUSY_PERCENT:
            console.print(
                f"[bold yellow]warning[/] others keep {found['busy_percent']:.0f}% of this machine busy: "
                "whoever shares its cores with that looks slower than it is",
                highlight=False,
            )
        console.print(f"{found.get('processor')}, {found.get('cores')} cores", highlight=False)
        archives = Archives.made(CACHE)
        parts = []
        for letter in letters:
            console.print(f"{letter}: {TITLES[letter]} ...", highlight=False)
            parts.append(PARTS[letter](archives, CACHE / letter, effort))
    except TorchportError as err:
        Console(stderr=True).print(f"[bold red]error[/] {err}", highlight=False)
        raise typer.Exit(2) from err
    report.print_table(parts, console)
    report.print_usage(parts, console)
    # What is kept under this name is always a whole run.
    name = "latest" if letters == list(PARTS) else "partial"
    report.write_results(parts, found, effort, results / f"{name}.json")
    chart.draw(parts, found, results / f"{name}.png")
    console.print(f"{results / name}.json, {results / name}.png")
    missed = [figure for part in parts for figure in part.figures if not figure.holds]
    if missed:
        console.print(f"[bold red]{len(missed)} of the targets missed[/]")
        raise typer.Exit(1)


def _letters(only: str) -> list[str]:
    asked = {letter.strip().upper() for letter in only.split(",") if letter.strip()}
    unknown = sorted(asked - set(PARTS))
    if unknown or not asked:
        raise BenchmarkError(f"--only {only!r}: of {', '.join(PARTS)}, some are expected")
    return [letter for letter in PARTS if letter in asked]


if __name__ == "__main__":
    app()
