"""Compares the handler's answers with an export and with the trained model.

Compared are the decisions for the recipe's requests and for held-out inputs, by every packaged backend,
with those over the model in float64:

    compared = compare_answers(recipe, folder, graphs, opened, reference_kinds)
    compared.summary()                   # [{"backend": "onnxruntime", "kind": "boxes", "agreed": 64, ...}]
    compared.failures[Variant("pt2")]    # ["pt2 on cpu, answer to held-out 3: boxes: 4 of 5 boxes are ..."]

The outputs of single graphs are compared in `torchport.verify.outputs`. Boxes after suppression and
sequences of tokens depend on several runs and on thresholds between them: they are compared here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torchport.errors import RecipeError
from torchport.model.eager import EagerBackend, perturbed_module
from torchport.recipe.contract import Recipe, Request
from torchport.recipe.handler import described_handler
from torchport.recipe.loading import find_handler
from torchport.recipe.requests import recipe_requests
from torchport.recipe.user_code import running
from torchport.store.folders import BuildFolder
from torchport.store.variants import Variant
from torchport.verify.answers.decisions import KINDS, Decided, Part, decided, differing, score_difference
from torchport.verify.answers.equality import as_served
from torchport.verify.outputs.error_statistics import short
from torchport.verify.outputs.reference import EAGER_MULTIPLE
from torchport.verify.torch_threads import torch_threads_kept
from torchport_runtime import Handler, InferenceRequest
from torchport_runtime.backends.backend import Backend

if TYPE_CHECKING:
    from torch import nn

HELD_OUT = 64
"""Maximum number of held-out inputs that are compared. They are evenly spread over all of them."""

FIRST = 10
"""Maximum number of differing answers that a certificate's row names. Further ones are counted only."""

PERTURBED_MODELS = 4
"""Number of perturbed models that decide a differing answer again. Each is the trained model, perturbed by
as much as a backend may be off. What one of them decides otherwise was no clear decision."""

Backends = Mapping[str, Backend]
"""Backends by graph."""


@dataclass(frozen=True)
class _Probe:
    name: str
    request: Request


@dataclass
class AnswerParity:
    """Result of comparing answers.

    `against` is "float64", or why the answers were compared with float32's.
    """

    against: str = ""
    failures: dict[Variant, list[str]] = field(default_factory=dict)
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> list[dict[str, Any]]:
        """The certificate's rows: one for each backend, device and kind of answer."""
        return [
            {**row, "rate": row["agreed"] / row["compared"] if row["compared"] else None}
            for row in self._rows
        ]

    def add(
        self,
        variant: Variant,
        device: str,
        probes: Sequence[_Probe],
        got: Sequence[Decided],
        model: _TrainedModel,
    ) -> None:
        """Count one variant's answers."""
        rows: dict[str, dict[str, Any]] = {}
        failures = self.failures.setdefault(variant, [])
        suspects = [
            index
            for index, one in enumerate(got)
            if not model.is_tie(index) and differing(one, model.truth[index], model.eager[index])
        ]
        ties = model.perturbed_ties(suspects)
        for index, (sent, one) in enumerate(zip(probes, got, strict=True)):
            truth = model.truth[index]
            row = rows.setdefault(truth.kind, _empty(variant, device, truth.kind))
            if model.is_tie(index) or index in ties:
                row["ties"] += 1
                continue
            row["compared"] += 1
            problem = differing(one, truth, model.eager[index]) if index in suspects else ""
            if not problem:
                row["agreed"] += 1
                row["scores_apart"] = max(row["scores_apart"], short(score_difference(one, truth)))
                continue
            failures.append(f"{variant} on {device}, answer to {sent.name}: {problem}")
            if len(row["first_differing"]) < FIRST:
                row["first_differing"].append({"input": sent.name, "differs": problem})
        self._rows += [rows[kind] for kind in KINDS if kind in rows]


def compare_answers(
    recipe: Recipe,
    folder: BuildFolder,
    graphs: Mapping[str, nn.Module],
    opened: Mapping[tuple[Variant, str], Backends],
    references: Mapping[str, str],
) -> AnswerParity:
    """Compare the handler's answers by each opened backend with the trained model's.

    `opened` has the backends by variant and device. `references` has each graph's reference, as
    `Reference.kind` names it.

    Raises:
        RecipeError: the handler does not load, or the recipe's own code fails.
    """
    handler = described_handler(recipe, folder.path)
    if handler.decides and handler.decides not in KINDS:
        raise RecipeError(
            f"handler {recipe.handler}: decides = {handler.decides!r}: one of {', '.join(KINDS)} is expected"
        )
    probes = _probes(recipe)
    compared = AnswerParity()
    with torch_threads_kept(recipe.options.thread_count), _quiet():
        model = _TrainedModel(recipe, handler, graphs, probes, references)
        compared.against = model.kind
        for (variant, device), backends in opened.items():
            compared.add(variant, device, probes, _decisions(recipe, handler, backends, probes), model)
    return compared


class _TrainedModel:
    """The handler's decisions on outputs of the trained model.

    `truth` is in float64 if the model runs in it.
    """

    def __init__(
        self,
        recipe: Recipe,
        handler: Handler,
        graphs: Mapping[str, nn.Module],
        probes: Sequence[_Probe],
        references: Mapping[str, str],
    ) -> None:
        self._recipe, self._handler, self._graphs, self._probes = recipe, handler, graphs, probes
        self._perturbed: dict[int, list[Decided]] = {}
        self.eager = self._decisions(graphs)
        self.truth, self.kind = self.eager, next((k for k in references.values() if k != "float64"), "")
        if not self.kind:
            double = self._decisions(graphs, double=True)
            refused = [i for i, one in enumerate(double) if _is_refusal(one) != _is_refusal(self.eager[i])]
            if refused:
                self.kind = f"float32: the handler does not answer {probes[refused[0]].name} in float64"
            else:
                self.truth, self.kind = double, "float64"
                others = sum(self.is_tie(index) for index in range(len(probes)))
                if others * 2 > len(probes):  # It shows its numbers' precision: that says nothing of ties.
                    self.truth = self.eager
                    self.kind = f"float32: the handler answers {others} of {len(probes)} otherwise in float64"

    def is_tie(self, index: int) -> bool:
        """Whether eager float32 itself decides otherwise than float64."""
        return bool(differing(self.eager[index], self.truth[index], self.eager[index]))

    def perturbed_ties(self, indices: Sequence[int]) -> set[int]:
        """Indices of answers that flip when the model is perturbed.

        The weights are perturbed by the error bound of a backend: such answers count as ties.
        """
        missing = [index for index in indices if index not in self._perturbed]
        if missing:
            probes = [self._probes[index] for index in missing]
            for seed in range(PERTURBED_MODELS):
                perturbed = {n: perturbed_module(m, EAGER_MULTIPLE, seed) for n, m in self._graphs.items()}
                for index, one in zip(missing, self._decisions(perturbed, probes), strict=True):
                    self._perturbed.setdefault(index, []).append(one)
        return {
            index
            for index in indices
            if any(differing(one, self.truth[index], self.eager[index]) for one in self._perturbed[index])
        }

    def _decisions(
        self, graphs: Mapping[str, nn.Module], probes: Sequence[_Probe] | None = None, *, double: bool = False
    ) -> list[Decided]:
        signatures = self._handler.signatures
        backends = {
            name: EagerBackend(module, signatures[name], double=double) for name, module in graphs.items()
        }
        return _decisions(self._recipe, self._handler, backends, self._probes if probes is None else probes)


def spread(examples: int) -> list[int]:
    """Indices of the examples to compare: at most `HELD_OUT`, evenly spaced from the first on."""
    count = min(HELD_OUT, examples)
    return [index * examples // count for index in range(count)]


def _probes(recipe: Recipe) -> list[_Probe]:
    """The recipe's requests, and held-out inputs that are spread over all of them."""
    with running(recipe.path, "heldout"):
        examples = list(recipe.heldout())
    return [
        *(_Probe(f"request {index}", sent) for index, sent in enumerate(recipe_requests(recipe))),
        *(_Probe(f"held-out {index}", examples[index].request) for index in spread(len(examples))),
    ]


def _decisions(
    recipe: Recipe, handler: Handler, backends: Backends, probes: Sequence[_Probe]
) -> list[Decided]:
    """The handler's decisions over some backends, in batches of the served size."""
    handler.backends = dict(backends)
    found = []
    for start in range(0, len(probes), recipe.serving.batch_size):
        chunk = probes[start : start + recipe.serving.batch_size]
        with running(find_handler(recipe), "answer"):
            answers = handler.answer([InferenceRequest(sent.request.fields()) for sent in chunk])
        for answer in answers:
            if answer.status != 200:
                found.append(_refusal(f"refused with {answer.status}"))
                continue
            try:
                found.append(decided(as_served(answer), handler.decides))
            except (TypeError, ValueError, RecursionError):  # NaN among the numbers, which JSON cannot say.
                found.append(_refusal("nothing that JSON can say"))
    return found


_REFUSED = "(refused)"


def _refusal(why: str) -> Decided:
    return Decided((Part(_REFUSED, "json", why),), {})


def _is_refusal(one: Decided) -> bool:
    return any(part.path == _REFUSED for part in one.parts)


def _empty(variant: Variant, device: str, kind: str) -> dict[str, Any]:
    counts = {"compared": 0, "agreed": 0, "ties": 0, "scores_apart": 0.0, "first_differing": []}
    return {"backend": str(variant), "device": device, "kind": kind, **counts}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log of refused requests, which are counted instead."""
    logger = logging.getLogger("torchport_runtime")
    before = logger.disabled, logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before[1])
