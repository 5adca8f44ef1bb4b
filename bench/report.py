"""Figures as a table for people, as JSON for keeping.

print_table(parts, Console())
write_results(parts, machine, effort, Path("bench/results/latest.json"))
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import Figure, Part
from bench.rounds import Effort
from bench.usage import Usage


def print_table(parts: Sequence[Part], console: Console) -> None:
    """One line a figure."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    for name in ("median", "least to greatest", "held against", "", "ratio", "target", ""):
        right = name in ("median", "least to greatest", "held against", "ratio")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for part in parts:
        for figure in part.figures:
            table.add_row(*_row(figure))
        table.add_section()
    console.print(table)


def print_usage(parts: Sequence[Part], console: Console) -> None:
    """Who used the processor in the runs, medians: what an answer cost the server, and what the load did."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("who used the processor", no_wrap=True)
    for name in (
        "server",
        "load generator",
        "others",
        "idle",
        "server, an answer",
        "load generator, an answer",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for part in parts:
        for name, runs in part.runs.items():
            found = [run.usage for run in runs if run.usage is not None]
            if not found:
                continue
            usage, rate = Usage.median(found), statistics.median(run.per_second for run in runs)
            shares = (usage.server, usage.load, usage.others, usage.idle)
            costs = (usage.microseconds(share, rate) for share in (usage.server, usage.load))
            table.add_row(
                f"{part.letter}  {name}",
                *(f"{share:.0%}" for share in shares),
                *(f"{number(cost)} us" for cost in costs),
            )
    if table.row_count:
        console.print(table)


def _row(figure: Figure) -> tuple[str, ...]:
    measured, unit = figure.measured, figure.unit
    spread = f"{number(measured.least)} to {number(measured.greatest)}"
    row = [figure.part, figure.what, f"{number(measured.median)} {unit}"]
    row += ["" if measured.least == measured.greatest else spread]
    row += [number(figure.against.median) if figure.against else "", figure.rival]
    row += ["" if figure.ratio is None else f"{figure.ratio:.2f}"]
    if figure.failed:
        return (*row, "", f"[bold red]INVALID: {figure.failed} failed[/]")
    if figure.target is None:
        return (*row, "", "")
    of = "" if figure.ratio is not None else f" {unit}"
    verdict = "[green]ok[/]" if figure.holds else "[bold red]MISSED[/]"
    return (*row, f"{figure.target.relation} {figure.target.bound:g}{of}", verdict)


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def results(parts: Sequence[Part], machine: dict[str, Any], effort: Effort) -> dict[str, Any]:
    """Everything that was measured, as JSON can say it."""
    return {
        "machine": machine,
        "effort": asdict(effort),
        "figures": [
            {**asdict(figure), "ratio": figure.ratio, "holds": figure.holds}
            for part in parts
            for figure in part.figures
        ],
        "parts": {
            part.letter: {"title": part.title, "settings": part.settings, "runs": part.runs} for part in parts
        },
    }


def write_results(parts: Sequence[Part], machine: dict[str, Any], effort: Effort, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results(parts, machine, effort), indent=1, default=asdict)
    path.write_text(text + "\n", encoding="utf-8")
