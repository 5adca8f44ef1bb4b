"""What a shadow costs callers: latencies with and without it, side by side, at half of full load.

    python -m bench.shadow digits_resnet18 --shadow torchscript=0.1

Two servers run the same archive, one with the shadow, one without. They are asked in turns, by evenly spaced
requests, half as many a second as the one without it answers at most. A latency counts from the moment that
a request was due: nobody gains by being late. Client, servers and shadow share this machine's cores.
"""

from __future__ import annotations

import http.client
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import requests
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from bench import machine
from bench.errors import BenchmarkError
from bench.load import Question, load
from torchport.recipe.loading import load_recipe
from torchport.recipe.requests import recipe_requests
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start
from torchport_runtime.shadow_options import ShadowOptions

CLIENTS = 8
FULL_LOAD_S = 8
RESAMPLES = 2000


def main(
    name: Annotated[str, typer.Argument(help="Of a model in the store.")] = "digits_resnet18",
    shadow: Annotated[str, typer.Option(help="Backend and fraction.")] = "torchscript=0.1",
    share: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of full load.")] = 0.5,
    seconds: Annotated[int, typer.Option(min=1, help="Of each turn.")] = 15,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each server.")] = 8,
    store: Annotated[Path, typer.Option(help="The folder of archives.")] = Path("model_store"),
) -> None:
    """Measure latencies with a shadow and without, in turns."""
    ShadowOptions.read(shadow)
    busy = machine.describe()["busy_percent"]
    archive = Store(store).archive(name, "1.0")
    if not archive.is_file():
        raise BenchmarkError(f"{archive} is not there: torchport ship {name}")
    with tempfile.TemporaryDirectory(prefix="bench-shadow-") as folder, ExitStack() as stack:
        alone = Store(Path(folder) / "store")
        alone.path.mkdir()
        shutil.copy(archive, alone.path)
        servers = {
            said: stack.enter_context(
                start(alone, Path(folder) / place, environment={"TORCHPORT_SHADOW": asked})
            )
            for said, place, asked in (("without", "off", "off"), (f"shadow {shadow}", "on", shadow))
        }
        request = recipe_requests(load_recipe(name))[0]
        questions = {
            said: Question(
                url=f"{server.urls['inference']}/predictions/{name}",
                body=request.content,
                content_type=request.content_type,
            )
            for said, server in servers.items()
        }
        for question in questions.values():
            full = load(question, connections=CLIENTS, seconds=FULL_LOAD_S).per_second
        full = load(questions["without"], connections=CLIENTS, seconds=FULL_LOAD_S).per_second
        rate = full * share
        latencies: dict[str, list[np.ndarray]] = {said: [] for said in servers}
        for number in range(rounds):
            for said in list(servers)[:: 1 if number % 2 else -1]:
                latencies[said].append(paced(questions[said], rate, seconds))
        counted = shadow_counters(servers[f"shadow {shadow}"])
    show(name, latencies, full, rate, counted, busy)


def paced(question: Question, rate: float, seconds: float) -> np.ndarray:
    """Latencies in milliseconds of requests that are due every 1/rate seconds.

    Raises:
        BenchmarkError: a request was not answered with 200.
    """
    parts = urlsplit(question.url)
    due = np.arange(int(rate * seconds)) / rate
    taken = np.zeros(len(due))
    problems: list[str] = []
    begin = time.perf_counter() + 0.1

    def client(mine: Sequence[int]) -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        for index in mine:
            time.sleep(max(0.0, begin + due[index] - time.perf_counter()))
            connection.request("POST", parts.path, question.body, {"Content-Type": question.content_type})
            answer = connection.getresponse()
            content = answer.read()
            taken[index] = time.perf_counter() - begin - due[index]
            if answer.status != 200:
                problems.append(f"{question.url} answers {answer.status}: {content[:200]!r}")
                return
        connection.close()

    threads = [threading.Thread(target=client, args=(range(n, len(due), CLIENTS),)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems or not taken.all():
        raise BenchmarkError(problems[0] if problems else f"{question.url}: a client stopped")
    return taken * 1000


def shadow_counters(server: ServerProcess) -> dict[str, float]:
    text = requests.get(f"{server.urls['metrics']}/metrics", timeout=10).text
    return {
        sample.name.removesuffix("_total"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("Shadow")
    }


def ratio_range(before: list[np.ndarray], after: list[np.ndarray], percentile: float) -> tuple[float, float]:
    """Where the ratio of two percentiles lies in 95 of 100 draws of the turns, with replacement: pairs of
    turns are drawn together, since what else the machine did fell on both."""
    chance = np.random.default_rng(0)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = chance.integers(0, len(before), len(before))
        one, other = (np.concatenate([turns[i] for i in drawn]) for turns in (before, after))
        ratios.append(np.percentile(other, percentile) / np.percentile(one, percentile))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def show(
    name: str,
    latencies: dict[str, list[np.ndarray]],
    full: float,
    rate: float,
    counted: dict[str, float],
    busy: float,
) -> None:
    console = Console(width=120)
    without, with_shadow = latencies.values()
    requests_each = sum(len(turn) for turn in without)
    table = Table(box=SIMPLE, title=f"{name}: {rate:.1f} requests a second of {full:.1f} at most")
    for column in ("", "p50 ms", "p90 ms", "p99 ms"):
        table.add_column(column, justify="left" if not column else "right")
    for said, turns in latencies.items():
        pooled = np.concatenate(turns)
        table.add_row(said, *(f"{np.percentile(pooled, p):.2f}" for p in (50, 90, 99)))
    ratios = []
    for percentile in (50, 90, 99):
        both = (np.percentile(np.concatenate(turns), percentile) for turns in (with_shadow, without))
        low, high = ratio_range(without, with_shadow, percentile)
        ratios.append(f"{next(both) / next(both):.3f} ({low:.3f} to {high:.3f})")
    table.add_row("ratio, 95% of draws", *ratios)
    console.print(table)
    console.print(f"{requests_each} requests each, {len(without)} turns, {busy:.0f}% busy with others before")
    console.print(", ".join(f"{key} {value:g}" for key, value in counted.items()))


if __name__ == "__main__":
    typer.run(main)
