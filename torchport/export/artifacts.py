"""Every artifact of a model: each graph for each backend, in each precision that the recipe names.

made = make_artifacts(recipe, model, recipe.signatures(), tell=print)
made.contents["main.bfloat16.pt2"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport.errors import ExportError
from torchport.export.aotinductor import export_aotinductor
from torchport.export.guards import guarded_sizes, holds_at
from torchport.export.onnx import export_onnx, to_onnx
from torchport.export.program import capture, export_program, in_order, save_program
from torchport.export.torchscript import export_torchscript
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


@dataclass
class Artifacts:
    """`contents` and `entries` of the export's record by file name; `failed` are the optional backends, and
    `failed_precisions` the other optional variants, that could not be made, each with the reason. `guards`
    are by graph what its program takes for granted of sizes (`torchport.export.guards`)."""

    contents: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    failed_precisions: dict[str, str] = field(default_factory=dict)
    guards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def drop_failed(self) -> None:
        """Of what failed for one graph, no other graph's artifact is kept."""
        lost = {*self.failed, *self.failed_precisions}
        for name, entry in list(self.entries.items()):
            if {entry["backend"], str(Variant.of(entry))} & lost:
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
    made = Artifacts()
    failures: dict[str, list[str]] = {}
    # The ONNX exporter may change the program that it is given: it comes last; and what is compiled comes
    # after what is saved as it was captured.
    order = {"aotinductor": 1, "onnxruntime": 2}
    variants = sorted(
        wanted_variants(recipe),
        key=lambda v: (list(recipe.precisions).index(v.precision), order.get(v.backend, 0)),
    )
    for graph, module in graphs.items():
        module = module.eval()
        signature = signatures[graph]
        inputs = example_inputs(signature)
        check_eager_outputs(recipe, graph, module, signature, inputs)
        exporter = _Exporter(recipe, module, in_order(module, signature, inputs), signature, inputs)
        for variant in variants:
            name = variant.artifact(graph)
            tell(f"exporting {name}")
            try:
                if variant.precision != "float32":
                    check_eager_outputs(recipe, graph, module, signature, inputs, variant.precision)
                content, facts = exporter.make(variant)
            except ExportError as err:
                if variant.backend in recipe.optional_backends and variant.precision == "float32":
                    made.failed.setdefault(variant.backend, f"graph {graph}: {err}")
                elif is_optional(recipe, variant):
                    made.failed_precisions.setdefault(str(variant), f"graph {graph}: {err}")
                else:
                    failures.setdefault(str(err), []).append(name)
                continue
            made.contents[name] = content
            made.entries[name] = {
                **variant.to_json(),
                "graph": graph,
                "sha256": sha256_bytes(content),
                "bytes": len(content),
                **facts,
            }
        guards = exporter.guards()
        if guards:
            made.guards[graph] = guards
    if failures:
        raise ExportError(
            f"{recipe.name} {recipe.version} cannot be exported as its recipe says:\n  "
            + "\n  ".join(f"{', '.join(names)}: {reason}" for reason, names in failures.items())
            + f"\n(nothing was written; the recipe's backends are now {tuple(recipe.backends)}, its "
            f"precisions {tuple(recipe.precisions)})"
        )
    made.drop_failed()
    return made


class _Exporter:
    """One graph for every variant; a program is captured once for each precision."""

    def __init__(
        self,
        recipe: Recipe,
        module: nn.Module,
        ordered: nn.Module,
        signature: Signature,
        inputs: Mapping[str, np.ndarray],
    ) -> None:
        self._recipe, self._module, self._ordered = recipe, module, ordered
        self._signature, self._inputs = signature, inputs
        self._programs: dict[str, ExportedProgram] = {}
        self._guards: dict[str, dict[str, Any]] = {}

    def guards(self) -> list[dict[str, Any]]:
        """What was taken for granted of sizes in any precision."""
        return list(self._guards.values())

    def make(self, variant: Variant) -> tuple[bytes, dict[str, Any]]:
        """One artifact, and what is to be recorded about it."""
        recipe, precision = self._recipe, variant.precision
        if variant.backend == "torchscript":
            module = self._module if recipe.torchscript == "script" else self._ordered
            content = export_torchscript(recipe, module, self._signature, self._inputs, precision)
            return content, {"method": recipe.torchscript}
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
        content, facts = export_onnx(program, self._signature)
        traced = self._signature.check_input_shapes(self._inputs)
        sizes = other_sizes(self._signature, traced, partial(holds_at, program, self._signature))
        if sizes is None:
            return content, facts
        inputs = random_inputs(self._signature, sizes, seed=1)
        try:
            other = capture(self._recipe, self._ordered, self._signature, inputs, precision)
            twin = to_onnx(other, self._signature).SerializeToString()
        except ExportError:  # At sizes that the model does not take after all; parity asks it at its own.
            return content, facts
        found = first_difference(content, twin)
        if found is None or same_answers(content, twin, inputs):
            return content, facts
        where = line_in_trace(found.trace, self._recipe)
        at, and_at = (", ".join(f"{symbol}={size}" for symbol, size in s.items()) for s in (traced, sizes))
        raise ExportError(
            f"{where + ': ' if where else ''}the ONNX graph holds the sizes that it was traced with: "
            f"{found.operator} ({found.node}) {found.what}, traced at {at} and at {and_at}; use x.shape[...] "
            "where a size is needed and make no Python number of it, or leave onnxruntime out of the "
            "recipe's backends"
        )

    def _program(self, precision: str) -> ExportedProgram:
        if precision not in self._programs:
            program = export_program(self._recipe, self._ordered, self._signature, self._inputs, precision)
            self._guards |= {guard["holds_where"]: guard for guard in guarded_sizes(program, self._signature)}
            self._programs[precision] = program
        return self._programs[precision]
