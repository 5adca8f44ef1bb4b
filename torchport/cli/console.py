"""Prints for the commands: stages, tables, progress.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from torchport.archive.contents import ArchiveContents
from torchport.store.files import write_bytes
from torchport.store.variants import Variant
from torchport_runtime import TensorSpec

if TYPE_CHECKING:
    from torchport.cli.zoo import Row
    from torchport.verify.local.proving import LocalParity

T = TypeVar("T")

err = Console(stderr=True, soft_wrap=True, highlight=False)
out = Console(soft_wrap=True, highlight=False)
if not out.is_terminal:
    # A file has no width: tables are as wide as they need to be.
    out = Console(soft_wrap=True, highlight=False, width=400)

_LINES = "\n\t"


def plain(text: object, keep: str = "") -> str:
    """Text without control characters, for a terminal, which would obey them; `keep` are left.

    They become escapes: an archive's name must not clear the screen, write over what was said, or change
    the direction of the text after it.
    """
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def say(message: str) -> None:
    out.print(escape(plain(message, keep=_LINES)))


def problem(message: str) -> None:
    err.print(f"[bold red]error:[/] {escape(plain(message, keep=_LINES))}")


def stage(name: str, done: bool, why: str, detail: str) -> None:
    """Print one line for a stage: done now or unchanged, and why."""
    mark = "[green]done[/]     " if done else "[cyan]unchanged[/]"
    out.print(f"[bold]{name:8}[/] {mark} {escape(detail)} [dim]({escape(why)})[/]")


def answer(value: Any, output: Path | None = None) -> None:
    """Print an answer, or write it to `output`."""
    if output is not None:
        content = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
        write_bytes(output, content)
        out.print(f"{escape(str(output))}: {len(content)} bytes")
    elif isinstance(value, bytes):
        out.print(f"{len(value)} bytes (--output FILE keeps them)")
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        # A program that reads it gets what the server sent.
        out.print(escape(plain(text, keep=_LINES) if out.is_terminal else text))


def exchange(sent: str, got: Any) -> None:
    shown = json.dumps(got, ensure_ascii=False) if not isinstance(got, bytes) else f"{len(got)} bytes"
    sent, shown = plain(sent), plain(shown)
    sent, shown = (text if len(text) <= 300 else f"{text[:300]}..." for text in (sent, shown))
    out.print(f"  {escape(sent)} [dim]->[/] [bold]{escape(shown)}[/]")


def progress(items: Iterable[T], description: str, total: int | None) -> Iterable[T]:
    """A progress bar on a terminal; elsewhere a line at the beginning."""
    if not err.is_terminal:
        err.print(escape(description))
        return items
    return track(items, description, total=total, console=err, transient=True)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner during some work.

    Yields a function that changes its text.
    """
    with err.status(escape(what)) as status:
        yield lambda message: status.update(escape(message))


def parity(certificate: Mapping[str, Any]) -> None:
    """Print a certificate as a table.

    It has a line per graph, backend and device.
    """
    table = Table(
        title=f"parity of {certificate['recipe']} {certificate['version']}", title_justify="left", box=SIMPLE
    )
    for column in ("graph", "backend", "device", "cases", "worst error", "of its bound", "decisions", ""):
        table.add_column(column, justify="right" if column in ("cases", "of its bound") else "left")
    for result in certificate["results"]:
        rows = [r for r in result["comparisons"] if "bound" in r]
        worst = max(rows, key=lambda r: float(r["error"]) / r["bound"], default=None)
        decisions = result["decisions"]
        agreed = f"{decisions['agreed']} of {decisions['compared']}" if decisions["compared"] else "-"
        table.add_row(
            result["graph"],
            str(Variant.of(result)),
            result["device"],
            str(result["cases"]),
            f"{float(worst['error']):.2g} ({worst['case']})" if worst else "-",
            f"{result['worst_error_to_bound']:.0%}" if worst else "-",
            agreed,
            "[green]pass[/]" if result["passed"] else "[bold red]FAIL[/]",
        )
    out.print(table)
    for row in certificate.get("answers", []):
        ties = f", {row['ties']} near ties apart" if row["ties"] else ""
        agreed = f"{row['agreed']} of {row['compared']} answers decide as the trained model's ({row['kind']})"
        say(f"{row['backend']} on {row['device']}: {agreed}{ties}")
    for graph, kind in certificate["reference"].items():
        if kind != "float64":
            out.print(f"[yellow]graph {escape(graph)}: reference {escape(kind)}[/]")


def local_parity(archive: Path, result: LocalParity) -> None:
    """Print how an archive was verified on this machine.

    There is a line for each backend and device.
    """
    for found in result.record["results"]:
        where = f"{archive.name}: {Variant.of(found)} on {found['device']}"
        worst = found["worst_error_to_bound"]
        error = worst if isinstance(worst, str) else f"{worst:.0%}"
        said = f"{found['cases']} cases, worst error {error} of its bound"
        if found["requests_compared"]:
            said += f", {found['requests_compared']} answers as proven"
        before = "" if result.done else ", proven before"
        mark = "[green]pass[/]" if found["passed"] else "[bold red]FAIL[/]"
        out.print(f"{escape(where)}: {mark} [dim]({said}{before})[/]")
        for failure in found["failures"][:5]:
            problem(failure)
    for variant in result.record["not_installed"]:
        say(f"{archive.name}: not proven here: {variant}, which is not installed")


def quantization(report: Mapping[str, Any]) -> None:
    """Print the attempts to quantise a model, a line each."""
    examples, gate = report["heldout_answers"], report["gate"]
    table = Table(
        title=f"INT8 of {report['recipe']} {report['version']}: {examples} held-out answers, at most "
        f"{gate['max_drop']:g} worse; batches of {report['batch_size']}, {report['threads']} threads",
        title_justify="left",
        box=SIMPLE,
    )
    for column in ("ranges", "in float32", *report["float32"]["metrics"], "agree", "MB", "throughput", ""):
        table.add_column(column, justify="left" if column in ("ranges", "") else "right")
    before = report["float32"]
    numbers = [f"{value:.4g}" for value in before["metrics"].values()]
    table.add_row("(float32)", "all", *numbers, "-", "-", f"1.00, {before['batch_ms']:.3g} ms", "")
    for row in report["tried"]:
        verdict = "[green]passes[/]" if not row["problems"] else "[red]fails[/]"
        table.add_row(
            row["method"],
            f"{len(row['left_in_float32'])} of {report['layers']}",
            *(f"{row['metrics'][name]:.4g}" if row["metrics"] else "-" for name in before["metrics"]),
            f"{row['agreed'] / row['compared']:.2%}" if row["compared"] else "-",
            f"{row['bytes'] / 1e6:.1f}",
            f"{'about ' if row['rounds'] == 'few' else ''}{row['speed']:.2f}",
            "[bold green]chosen[/]" if row["chosen"] else verdict,
        )
    out.print(table)
    for method, why in report["impossible"].items():
        say(f"  {method}: {why}")


def archive(contents: ArchiveContents) -> None:
    """Print what an archive contains and whether its hashes match."""
    model, certificate = contents.manifest["model"], contents.certificate
    # An archive's own words are held to one line each: it cannot write lines that are not ours.
    handler = model.get("handler", "-")
    say(plain(f"{contents.path}: model {contents.name} {contents.version}, handler {handler}"))
    options = contents.config.get("torchport") or {}
    if options:
        settings = ", ".join(f"{k} {v}" for k, v in options.items() if k != "handler")
        say(plain(f"runs with: {settings}"))
    for graph, signature in contents.signature.get("graphs", {}).items():
        for role in ("inputs", "outputs"):
            specs = ", ".join(f"{n} {TensorSpec.from_json(s)}" for n, s in signature[role].items())
            say(plain(f"graph {graph}, {role}: {specs}"))
    table = Table("file", "bytes", "sha256", box=SIMPLE)
    for entry in contents.entries:
        table.add_row(escape(plain(entry.name)), f"{entry.size:,}", entry.sha256[:16])
    out.print(table)
    if certificate:
        backends = ", ".join(f"{Variant.of(r)} on {r['device']}" for r in certificate.get("results", []))
        say(plain(f"certificate: {'passed' if certificate.get('passed') else 'NOT PASSED'}, {backends}"))
    if contents.int8_certificate:
        int8 = contents.int8_certificate
        changes = ", ".join(f"{k} {v['float32']:.4g} -> {v['int8']:.4g}" for k, v in int8["metrics"].items())
        agreed, compared = int8["agreement"]["agreed"], int8["agreement"]["compared"]
        alike = f"; {agreed} of {compared} answers decide alike" if compared else ""
        say(plain(f"INT8 version ({int8['method']}): {changes}{alike}"))
    if contents.problems:
        for item in contents.problems:
            problem(plain(item))
    else:
        say("every hash holds")


def served(records: Sequence[Mapping[str, Any]]) -> None:
    """Print one line for each server that an archive was checked on."""
    for record in records:
        said = "answers as in process" if record["passed"] else "DOES NOT ANSWER as in process"
        numbers = "".join(f", {name} {value:.4g}" for name, value in record["metrics"].items())
        ran = f"{record.get('backend', '')} {record.get('precision', '')}".strip()
        say(plain(f"served by {record['server']} ({ran}): {said}{numbers}"))


def recipes(rows: Sequence[Mapping[str, str]]) -> None:
    """Print recipes with task, state and held-out metric."""
    columns = ("recipe", "version", "task", "parameters", "state", "metrics")
    table = Table(*columns, box=SIMPLE)
    for row in rows:
        table.add_row(*(escape(row[column]) for column in columns))
    out.print(table)


def zoo_row(row: Row) -> None:
    """Print one line for a recipe of a list that has ended."""
    seconds = ", ".join(f"{stage} {took:.0f} s" for stage, took in row.seconds.items()) or "nothing was run"
    mark = "[green]passed[/]" if row.passed else f"[bold red]missed:[/] {escape(row.problem)}"
    out.print(f"[bold]{escape(row.recipe)}[/] {mark} [dim]({seconds})[/]")


def zoo(rows: Sequence[Row]) -> None:
    """Print a table of a list's recipes and their results."""
    table = Table(box=SIMPLE)
    for column in ("recipe", "metric as served", "goal", "torchscript", "onnxruntime", "pt2", "of bound"):
        table.add_column(column)
    for column in ("MB", "answers", "train s", "all s"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in rows:
        shown = {name: row.metrics.get(name) for name in row.goals} or dict(row.metrics)
        metrics = ", ".join(f"{k} {v:.4g}" if v is not None else f"{k} -" for k, v in shown.items())
        table.add_row(
            escape(row.recipe),
            escape(metrics) or ("parity" if row.exported else "-"),
            escape(", ".join(row.goals.values())) or "-",
            *(escape(row.exported.get(b, "-")) for b in ("torchscript", "onnxruntime", "pt2")),
            f"{row.worst_error_to_bound:.0%}" if row.exported else "-",
            f"{row.archive_bytes / 1e6:.1f}",
            str(row.answers),
            f"{row.seconds.get('train', 0):.0f}",
            f"{sum(row.seconds.values()):.0f}",
            "[green]passed[/]" if row.passed else "[bold red]MISSED[/]",
        )
    out.print(table)
    training = sum(row.seconds.get("train", 0) for row in rows)
    say(f"training {training:.0f} s, all {sum(sum(row.seconds.values()) for row in rows):.0f} s")
    for row in rows:
        if not row.passed:
            problem(f"{row.recipe}: {row.problem}")
