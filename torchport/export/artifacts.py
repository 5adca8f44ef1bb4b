"""Makes every artifact of a model: one for each graph, backend and precision.

made = make_artifacts(recipe, model, recipe.signatures(), tell=print)
made.contents["main.bfloat16.pt2"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torchport.errors import ExportError
from torchport.export.aotinductor import export_aotinductor
from torchport.export.guards import guarded_sizes, holds_at
from torchport.export.onnx import export_onnx, to_onnx
from torchport.export.program import capture, export_program, in_order, save_program
from torchport.export.torchscript import export_torchscript
from torchport.export.traced_graph import TracedGraph
from torchport.export.traced_sizes import first_difference, other_sizes, same_answers
from torchport.model.outputs import check_eager_outputs
from torchport.recipe.contract import Recipe
from torchport.recipe.inputs import example_inputs, random_inputs
from torchport.recipe.user_code import line_in_trace
from torchport.recipe.variants import is_optional, wanted_variants
from torchport.store.hashing import sha256_bytes
from torchport.store.variants import Variant
from torchport_runtime import Signature

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


class Failures:
    """Variants that failed to export: those that the recipe requires, and the optional ones.

    `optional` has a reason by variant, such as `pt2 bfloat16`; the first graph's where several failed.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._required: dict[str, list[str]] = {}
        self.optional: dict[str, str] = {}

    def add(self, variant: Variant, graph: str, err: ExportError) -> None:
        """Sort one variant's error."""
        if is_optional(self._recipe, variant):
            self.optional.setdefault(str(variant), f"graph {graph}: {err}")
        else:
            self._required.setdefault(str(err), []).append(variant.artifact(graph))

    def require_only_optional(self) -> None:
        """Refuse a recipe of which something required could not be made.

        Raises:
            ExportError: all such failures in one, each reason once.
        """
        if self._required:
            recipe = self._recipe
            raise ExportError(
                f"{recipe.name} {recipe.version} cannot be exported as its recipe says:\n  "
                + "\n  ".join(f"{', '.join(names)}: {reason}" for reason, names in self._required.items())
                + f"\n(nothing was written; the recipe's backends are now {tuple(recipe.backends)}, its "
                f"precisions {tuple(recipe.precisions)})"
            )


@dataclass
class Artifacts:
    """All artifacts of an export.

    `contents` and `entries` of the export's record are by file name.

    `failed` are the optional variants that could not be made, each with its reason. `guards` are by graph
    what its program takes for granted of sizes (`torchport.export.guards`).
    """

    contents: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    guards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, variant: Variant, graph: str, content: bytes, facts: Mapping[str, Any]) -> None:
        """Keep one artifact, and its entry for the record."""
        name = variant.artifact(graph)
        self.contents[name] = content
        self.entries[name] = {
            **variant.to_json(),
            "graph": graph,
            "sha256": sha256_bytes(content),
            "bytes": len(content),
            **facts,
        }

    def drop_failed(self) -> None:
        """Drop all graphs' artifacts of a variant that failed for one graph."""
        for name, entry in list(self.entries.items()):
            if {entry["backend"], str(Variant.of(entry))} & set(self.failed):
                del self.entries[name], self.contents[name]


def make_artifacts(
    recipe: Recipe,
    graphs: Mapping[str, nn.Module],
    signatures: Mapping[str, Signature],
    tell: Callable[[str], None],
) -> Artifacts:
    """Export all graphs.

    Raises:
        ExportError: one that is not optional cannot be made; all failures in one.
    """
    made, failures = Artifacts(), Failures(recipe)
    variants = _in_export_order(recipe)
    for graph, module in graphs.items():
        module = module.eval()
        signature = signatures[graph]
        inputs = example_inputs(signature)
        check_eager_outputs(recipe, graph, module, signature, inputs)
        exporter = _Exporter(TracedGraph(recipe, module, signature, inputs))
        for variant in variants:
            tell(f"exporting {variant.artifact(graph)}")
            try:
                if variant.precision != "float32":
                    check_eager_outputs(recipe, graph, module, signature, inputs, variant.precision)
                content, facts = exporter.make(variant)
            except ExportError as err:
                failures.add(variant, graph, err)
                continue
            made.add(variant, graph, content, facts)
        guards = exporter.guards()
        if guards:
            made.guards[graph] = guards
    failures.require_only_optional()
    made.failed = failures.optional
    made.drop_failed()
    return made


def _in_export_order(recipe: Recipe) -> list[Variant]:
    """The recipe's variants by precision, those made of one program together."""
    # The ONNX exporter may change the program that it is given: it comes last; and what is compiled comes
    # after what is saved as it was captured.
    order = {"aotinductor": 1, "onnxruntime": 2}
    precisions = list(recipe.precisions)
    return sorted(
        wanted_variants(recipe),
        key=lambda variant: (precisions.index(variant.precision), order.get(variant.backend, 0)),
    )


class _Exporter:
    """One graph for every variant; a program is captured once for each precision."""

    def __init__(self, graph: TracedGraph) -> None:
        self._graph = graph
        self._ordered = replace(graph, module=in_order(graph.module, graph.signature, graph.inputs))
        self._programs: dict[str, ExportedProgram] = {}
        self._guards: dict[str, dict[str, Any]] = {}

    def guards(self) -> list[dict[str, Any]]:
        """What was taken for granted of sizes in any precision."""
        return list(self._guards.values())

    def make(self, variant: Variant) -> tuple[bytes, dict[str, Any]]:
        """One artifact, and what is to be recorded about it."""
        precision = variant.precision
        if variant.backend == "torchscript":
            method = self._graph.recipe.torchscript
            graph = self._graph if method == "script" else self._ordered
            return export_torchscript(graph, precision), {"method": method}
        program = self._program(precision)
        if variant.backend == "pt2":
            return save_program(program), {}
        if variant.backend == "aotinductor":
            return export_aotinductor(program)
        return self._onnx(program, precision)

    def _onnx(self, program: ExportedProgram, precision: str) -> tuple[bytes, dict[str, Any]]:
        """The ONNX graph, compared with one that was traced at other sizes.

        Raises:
            ExportError: it is right at the traced sizes alone.
        """
        signature = self._graph.signature
        content, facts = export_onnx(program, signature)
        traced = signature.check_input_shapes(self._graph.inputs)
        sizes = other_sizes(signature, traced, partial(holds_at, program, signature))
        if sizes is None:
            return content, facts
        inputs = random_inputs(signature, sizes, seed=1)
        try:
            other = capture(replace(self._ordered, inputs=inputs), precision)
            twin = to_onnx(other, signature).SerializeToString()
        except ExportError:  # At sizes that the model does not take after all; parity asks it at its own.
            return content, facts
        found = first_difference(content, twin)
        if found is None or same_answers(content, twin, inputs):
            return content, facts
        where = line_in_trace(found.trace, self._graph.recipe)
        at, and_at = (", ".join(f"{symbol}={size}" for symbol, size in s.items()) for s in (traced, sizes))
        raise ExportError(
            f"{where + ': ' if where else ''}the ONNX graph holds the sizes that it was traced with: "
            f"{found.operator} ({found.node}) {found.what}, traced at {at} and at {and_at}; use x.shape[...] "
            "where a size is needed and make no Python number of it, or leave onnxruntime out of the "
            "recipe's backends"
        )

    def _program(self, precision: str) -> ExportedProgram:
        if precision not in self._programs:
            program = export_program(self._ordered, precision)
            guards = guarded_sizes(program, self._graph.signature)
            self._guards |= {guard["holds_where"]: guard for guard in guards}
            self._programs[precision] = program
        return self._programs[precision]
