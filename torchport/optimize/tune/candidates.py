"""What `torchport tune` may measure and choose: how a model can be served by what is proven of it.

    space = candidates(recipe, folder)
    space.default                        # as the recipe says: what `package` writes without a tuning
    space.shapes                         # backend x precision x threads x workers
    space.refused                        # why what is left out is left out, by backend or precision

A backend is a candidate where the archive carries it and its certificate of exactly these bytes passed;
INT8 where `int8.json` is of these bytes and its gate holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchport.errors import StaleError, TuningRequestError
from torchport.model.certificate import require_certificate
from torchport.model.exported import exported_variants, not_exported
from torchport.model.int8_certificate import require_int8
from torchport.package.configuration import BATCH_SIZES, Configuration, Kind
from torchport.recipe.contract import Recipe
from torchport.recipe.gate import Gate
from torchport.recipe.variants import wanted_variants
from torchport.store.folders import BuildFolder
from torchport.store.variants import Variant, has_passed
from torchport.verify.devices import usable_devices
from torchport_runtime.options import ARTIFACT_SUFFIX, HALF_PRECISIONS, PRECISIONS, available_cores
from torchport_runtime.suggest import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Space:
    """`shapes` have the default's batch size, the most promising first; `choosable` are the kinds that may be
    chosen, all others are measured to be shown."""

    default: Configuration
    shapes: Sequence[Configuration]
    batch_sizes: Sequence[int]
    choosable: frozenset[Kind]
    refused: Mapping[str, str]
    cores: int

    def with_batches(self, shape: Configuration) -> list[Configuration]:
        """The same with the other batch sizes, the largest first."""
        sizes = sorted(self.batch_sizes, reverse=True)
        return [replace(shape, batch_size=size) for size in sizes if size != shape.batch_size]


def candidates(
    recipe: Recipe,
    folder: BuildFolder,
    *,
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    allow_int8: bool = False,
    cores: int | None = None,
) -> Space:
    """What can be measured of a proven model; `backends` and `precisions` leave out all others.

    INT8 and half precisions change answers: they may be chosen where they are among `precisions` or the
    recipe serves them by default; INT8 also where `allow_int8` says so.

    Raises:
        StaleError: there is no passing certificate of what is in the folder now.
        TuningRequestError: a backend or a precision that is not known, or nothing is left.
    """
    for given, known in ((backends, tuple(ARTIFACT_SUFFIX)), (precisions, PRECISIONS)):
        for name in given:
            if name not in known:
                raise TuningRequestError(f"{name!r}: {did_you_mean(name, known)}")
    certificate = require_certificate(recipe, folder)
    default = Configuration.default_of(recipe)
    devices = usable_devices(recipe, folder)
    refused = {
        backend: why
        for backend in ARTIFACT_SUFFIX
        if backend in (*recipe.backends, *backends)
        and (why := _why_not(backend, recipe, certificate, devices))
    }
    int8 = _why_no_int8(recipe, folder)
    if int8:
        refused["int8"] = int8
    wanted = [v for v in wanted_variants(recipe) if v.precision in HALF_PRECISIONS]
    halves = [v for v in wanted if v in exported_variants(recipe, folder) and has_passed(certificate, v)]
    refused |= {
        str(v): not_exported(folder).get(str(v), "it did not pass parity") for v in wanted if v not in halves
    }
    kinds = [(backend, "float32") for backend in recipe.ships]
    kinds += [(variant.backend, variant.precision) for variant in halves] + [("onnxruntime", "int8")]
    proven = [
        kind
        for kind in kinds
        if kind[0] not in refused and kind[1] not in refused and kind[0] in recipe.ships
    ]
    if default.kind not in proven:
        raise StaleError(
            f"the recipe serves {' in '.join(default.kind)} by default, which cannot be measured: "
            + str(
                refused.get(default.backend)
                or refused.get(default.precision)
                or refused.get(str(Variant(*default.kind)), "it is not among what was exported and proven")
            )
        )
    asked = [
        kind
        for kind in proven
        if (not backends or kind[0] in backends) and (not precisions or kind[1] in precisions)
    ]
    if not asked:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise TuningRequestError(f"nothing proven is left to measure; refused: {reasons or 'nothing'}")
    allowed = {"float32", default.precision, *precisions, *(["int8"] if allow_int8 else [])}
    cores = cores or available_cores()
    return Space(
        default=default,
        shapes=_shapes(default, asked, cores),
        batch_sizes=[size for size in BATCH_SIZES if size <= _most_rows(recipe)],
        choosable=frozenset(kind for kind in asked if kind[1] in allowed),
        refused=refused,
        cores=cores,
    )


def _why_not(backend: str, recipe: Recipe, certificate: Mapping[str, Any], devices: Sequence[str]) -> str:
    """Why a backend is no candidate; empty where it is one."""
    results = [r for r in certificate["results"] if Variant.of(r) == Variant(backend)]
    if not results:
        return "it has no certificate"
    if not all(r["passed"] for r in results):
        return "it did not pass parity"
    if backend not in recipe.ships:
        return "the archive does not carry it: the recipe's `ships` says what does"
    proven = {str(r["device"]).partition(":")[0] for r in results}
    takes_gpu = Variant(backend).takes_gpu and recipe.options.device != "cpu"
    if takes_gpu and not set(devices) <= proven:
        return f"it is proven on {', '.join(sorted(proven))} only, and this machine has CUDA: verify it here"
    return ""


def _why_no_int8(recipe: Recipe, folder: BuildFolder) -> str:
    if recipe.options.device.startswith("cuda"):
        return f"it runs on the CPU, and the recipe asks for {recipe.options.device}"
    try:
        certificate = require_int8(recipe, folder)
    except StaleError as err:
        return str(err)
    metrics = certificate["metrics"]
    before, now = ({n: both[p] for n, both in metrics.items()} for p in ("float32", "int8"))
    return "; ".join(Gate(**certificate["gate"]).broken(before, now))


def _shapes(default: Configuration, kinds: Sequence[Kind], cores: int) -> list[Configuration]:
    """Threads and workers by powers of two, those first that just fill the cores.

    Up to twice the cores are taken: a worker that reads pictures, or waits, leaves its cores to others.
    """
    counts = sorted({2**n for n in range(cores.bit_length()) if 2**n <= cores} | {cores})
    pairs = [(threads, workers) for threads in counts for workers in counts if threads * workers <= 2 * cores]
    pairs.sort(key=lambda pair: (abs(pair[0] * pair[1] - cores), pair))
    shapes = [
        replace(default, backend=backend, precision=precision, threads=threads, workers=workers)
        for threads, workers in pairs
        for backend, precision in kinds
    ]
    return [shape for shape in shapes if not shape.alike(default, cores)]


def _most_rows(recipe: Recipe) -> int:
    """The most rows that every graph takes at once."""
    signatures = recipe.signatures().values()
    return min([s.dims[s.batch_dim][1] if s.batch_dim is not None else 1 for s in signatures], default=1)
