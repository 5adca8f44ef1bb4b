"""Serves the archive and compares its answers with those of the model in process.

Writes `serving.json`. The server is torchport's own, or a real TorchServe.

    result = check(load_recipe("linear"), Store(Path("model_store")))
    result.answers[0]                    # what the server said to the recipe's first request
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchport.archive.model import ArchivedModel, load
from torchport.client import Client
from torchport.errors import CheckError, RecipeError, ServerError, StaleError
from torchport.recipe.contract import Example, Recipe, Request
from torchport.recipe.gate import Gate
from torchport.recipe.goals import missed_goals
from torchport.recipe.requests import recipe_requests
from torchport.recipe.shipped import packaged_folder
from torchport.recipe.user_code import running
from torchport.store.folders import BuildFolder, Store
from torchport.store.hashing import sha256_file
from torchport.store.serving_record import keep_record
from torchport.store.versions import library_versions
from torchport.targets import torchport_serve, torchserve
from torchport.targets.guard import guard
from torchport.targets.torchport_serve import ServerProcess
from torchport.targets.torchserve import TorchServe
from torchport.targets.torchserve_setup import Ports
from torchport.verify.answers.decisions import decided, differing
from torchport.verify.answers.equality import ATOL, RTOL, as_json, same_answer
from torchport.verify.answers.parity import FIRST, spread
from torchport.verify.report.page import renew_report
from torchport.version import __version__
from torchport_runtime.suggest import did_you_mean

CONCURRENCY = 16


@dataclass(frozen=True)
class CheckResult:
    """Result of `check`.

    `record` is the content of `serving.json`; `answers` are those to the recipe's requests.
    """

    record: dict[str, Any]
    answers: list[Any]

    @property
    def failures(self) -> list[str]:
        """Answers and metrics that are not those of the model in process."""
        return list(self.record["failures"])

    @property
    def missed(self) -> list[str]:
        """The recipe's goals that its held-out metrics do not reach."""
        return list(self.record["missed"])


def check(
    recipe: Recipe,
    store: Store,
    *,
    backend: str | None = None,
    precision: str | None = None,
    server: str = "torchport",
    tell: Callable[[str], None] = lambda message: None,
) -> CheckResult:
    """Serve the recipe's archive on free ports of this machine, ask, compare, stop.

    `server` is one of `SERVERS`; `backend` and `precision` are the archive's unless given. In INT8 the
    metrics are to be those of `int8.json`, give or take what its gate allows; in float32 those of training.

    Raises:
        StaleError: there is no archive.
        ServerError: the server does not start, or is none of those.
    """
    if server not in SERVERS:
        raise ServerError(f"server {server!r}: {did_you_mean(server, SERVERS)}")
    archive = store.archive(recipe.name, recipe.version)
    if not archive.is_file():
        raise StaleError(f"{archive} is not there: torchport package {recipe.name}")
    if backend is not None and backend not in recipe.ships:
        raise RecipeError(f"backend {backend!r}: the archive carries {', '.join(recipe.ships)}")
    folder = store.build(recipe.name, recipe.version)
    given = {"TORCHPORT_BACKEND": backend, "TORCHPORT_PRECISION": precision}
    environment = {name: value for name, value in given.items() if value}
    with _served_alone(archive, server, environment, tell) as (served, digest, running_server):
        tell("asking")
        with (
            running_server.client() as client,
            load(served, backend=backend, precision=precision) as model,
        ):
            found = _ask_everything(recipe, client, model)
    failures = _judge(found, model, folder)
    record = {
        "torchport": __version__,
        "server": _named(server),
        "archive_sha256": digest,
        "backend": model.options.backend,
        "precision": model.options.precision,
        "passed": not failures,
        "failures": failures,
        "certificate_sha256": model.certificate_sha256,
        "requests_compared": len(found.answers),
        "requests_alike": len(found.answers) - len(found.unlike_requests),
        "heldout_answers": found.heldout,
        "decisions": found.decisions,
        "metrics": found.metrics,
        "goals": dict(recipe.goals),
        "missed": missed_goals(recipe.goals, found.metrics),
    }
    keep_record(folder, record)
    renew_report(folder)
    return CheckResult(record, found.answers)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a server answered, compared with the model in process."""

    answers: list[Any]
    unlike_requests: list[str]
    heldout: int
    """Held-out inputs that were answered."""
    metrics: dict[str, float]
    decisions: dict[str, Any]
    unlike_decisions: list[str]


@contextmanager
def _served_alone(
    archive: Path, server: str, environment: Mapping[str, str], tell: Callable[[str], None]
) -> Iterator[tuple[Path, str, ServerProcess | TorchServe]]:
    """Serve the archive from a store of its own.

    Gives its path there, its SHA-256 and the server.
    """
    with tempfile.TemporaryDirectory(prefix="torchport-check-") as name:
        alone = Store(Path(name) / "store")
        alone.path.mkdir()
        served = alone.path / archive.name
        _link(archive, served)  # What is put in the store's place meanwhile is not what is asked.
        digest = sha256_file(served)
        tell(f"starting {SERVERS[server]}")
        run = Path(name) / "run"
        with guard(run), SERVE[server](alone, run, environment) as running_server:
            yield served, digest, running_server


def _ask_everything(recipe: Recipe, client: Client, model: ArchivedModel) -> _Found:
    """Send the recipe's requests and its held-out inputs, and compare what comes back."""
    answers, unlike_requests = _compare_requests(recipe, client, model.predict)
    examples, served_answers = _heldout_answers(recipe, client)
    metrics = _score(recipe, examples, served_answers)
    decisions, unlike_decisions = _compare_decisions(recipe, client, model, examples, served_answers)
    return _Found(
        answers=answers,
        unlike_requests=unlike_requests,
        heldout=len(examples),
        metrics=metrics,
        decisions=decisions,
        unlike_decisions=unlike_decisions,
    )


def _judge(found: _Found, model: ArchivedModel, folder: BuildFolder) -> list[str]:
    """The failures among what was found; which comparisons count depends on the precision."""
    if model.options.precision == "float32":
        training = folder.training_record() or {}
        unlike_metrics = _compare_metrics(found.metrics, training.get("metrics", {}))
        return found.unlike_requests + found.unlike_decisions + unlike_metrics
    # Of another precision, an answer may depend on its batch mates: its gate or the goals judge.
    int8 = model.int8_certificate if model.options.precision == "int8" else None
    if int8 is None:  # A half precision's metrics are its own; the goals hold for them.
        return found.unlike_requests
    floats = {name: both["float32"] for name, both in int8["metrics"].items()}
    return found.unlike_requests + Gate(**int8["gate"]).broken(floats, found.metrics)


def _named(server: str) -> str:
    version = library_versions("torchserve").get("torchserve", "")
    return f"TorchServe {version}".strip() if server == "torchserve" else f"torchport {__version__}"


@contextmanager
def _torchserve(store: Store, run: Path, environment: Mapping[str, str]) -> Iterator[TorchServe]:
    with torchserve.start(store, run, ports=Ports.free(), environment=environment) as server:
        yield server


@contextmanager
def _own(store: Store, run: Path, environment: Mapping[str, str]) -> Iterator[ServerProcess]:
    config = packaged_folder("deploy") / "config.properties"
    quiet = {"enable_grpc": "false"}
    with torchport_serve.start(store, run, config=config, settings=quiet, environment=environment) as server:
        yield server


SERVERS = {"torchport": "torchport serve", "torchserve": "TorchServe"}
"""What can serve the archive, by the name that a user gives."""

SERVE: Mapping[str, Callable[..., AbstractContextManager[ServerProcess | TorchServe]]] = {
    "torchport": _own,
    "torchserve": _torchserve,
}


def ask(client: Client, recipe: Recipe, request: Request) -> Any:
    """Send one of the recipe's requests to its own version of the model."""
    return client.predict(
        recipe.name,
        version=recipe.version,
        body=request.content,
        content_type=request.content_type,
        params=request.params,
    )


def _compare_requests(
    recipe: Recipe, client: Client, predict: Callable[..., Any]
) -> tuple[list[Any], list[str]]:
    answers, failures = [], []
    for index, request in enumerate(recipe_requests(recipe)):
        served = ask(client, recipe, request)
        in_process = predict(request.fields()["body"], **request.params)
        if not same_answer(served, in_process):
            failures.append(
                f"request {index}: served {str(served)[:200]}, in process {str(in_process)[:200]}"
            )
        answers.append(served)
    return answers, failures


def _heldout_answers(recipe: Recipe, client: Client) -> tuple[list[Example], list[Any]]:
    """Held-out inputs and the server's answers; many are asked at a time."""
    with running(recipe.path, "heldout"):
        examples = list(recipe.heldout())

    def served(example: Example) -> Any:
        return ask(client, recipe, example.request)

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return examples, list(pool.map(served, examples))


def _score(recipe: Recipe, examples: Sequence[Example], answers: list[Any]) -> dict[str, float]:
    """The recipe's metrics, computed from what the server answered to the held-out inputs."""
    if not examples:
        return {}
    with running(recipe.path, "score"):
        scores = recipe.score(answers, [example.expected for example in examples])
        return {name: float(value) for name, value in scores.items()}


def _compare_decisions(
    recipe: Recipe,
    client: Client,
    model: ArchivedModel,
    examples: Sequence[Example],
    answers: Sequence[Any],
) -> tuple[dict[str, Any], list[str]]:
    """Compare the server's decisions on held-out inputs with those of the model in process.

    The server batches the inputs as they come; the model gets each alone. An input whose decision differs is
    sent again alone, since rounding in a batch may turn over a near tie.
    """
    chosen = spread(len(examples))
    first: list[dict[str, Any]] = []
    failures = []
    ties = 0
    for index in chosen:
        sent = examples[index].request
        in_process = as_json(model.predict(sent.fields()["body"], **sent.params))
        expected = decided(in_process, model.decides)
        problem = differing(decided(answers[index], model.decides), expected)
        if problem and not differing(decided(ask(client, recipe, sent), model.decides), expected):
            ties += 1
        elif problem:
            failures.append(f"held-out {index}, served against in process: {problem}")
            first.append({"input": f"held-out {index}", "differs": problem})
    counts = {"compared": len(chosen) - ties, "agreed": len(chosen) - ties - len(failures), "ties": ties}
    return {**counts, "first_differing": first[:FIRST]}, failures


def _compare_metrics(served: Mapping[str, float], trained: Mapping[str, float]) -> list[str]:
    return [
        f"{name} is {value:.6g} when served, {trained[name]:.6g} when trained"
        for name, value in served.items()
        if name in trained and not math.isclose(value, trained[name], rel_tol=RTOL, abs_tol=ATOL)
    ]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another file system.
        shutil.copy(source, target)


def require(result: CheckResult) -> CheckResult:
    """The result, or its failures as an error.

    Raises:
        CheckError: the served model does not answer as it does in process, or misses a goal.
    """
    if result.failures:
        raise CheckError("the served model is not the proven one:\n  " + "\n  ".join(result.failures))
    if result.missed:
        raise CheckError("held-out metrics, as served:\n  " + "\n  ".join(result.missed))
    return result
