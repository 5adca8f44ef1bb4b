"""Configurations that `torchport tune` may measure and choose, all of them verified.

    space = candidates(recipe, folder)
    space.default                        # as the recipe says: what `package` writes without a tuning
    space.shapes                         # backend x precision x threads x workers
    space.refused                        # why what is left out is left out, by backend or precision

A backend is a candidate where the archive carries it and its certificate of exactly these bytes passed;
INT8 where `int8.json` is of these bytes and its gate holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torchport.errors import StaleError, TuningRequestError
from torchport.model.certificate import binding, require_certificate
from torchport.model.exported import exported_variants, not_exported
from torchport.model.int8_certificate import require_int8
from torchport.package.configuration import BATCH_SIZES, Configuration, Kind
from torchport.recipe.contract import Recipe
from torchport.recipe.gate import Gate
from torchport.recipe.variants import INT8, wanted_variants
from torchport.store.folders import BuildFolder
from torchport.store.variants import Variant, has_passed
from torchport.verify.devices import usable_devices
from torchport_runtime.cores import available_cores
from torchport_runtime.options import ARTIFACT_SUFFIX, HALF_PRECISIONS, PRECISIONS
from torchport_runtime.suggest import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Space:
    """Configurations to measure. `shapes` have the default's batch size, the most promising first.

    `choosable` are the kinds that may be chosen; others are measured to be shown. `binding` are the digests
    of the build folder (`torchport.model.certificate.binding`) that this was found in.
    """

    default: Configuration
    shapes: Sequence[Configuration]
    batch_sizes: Sequence[int]
    choosable: frozenset[Kind]
    refused: Mapping[str, str]
    cores: int
    binding: Mapping[str, Any] = field(default_factory=dict)

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
    """Configurations to measure; `backends` and `precisions` restrict them.

    INT8 and half precisions change answers: they may be chosen where they are among `precisions` or the
    recipe serves them by default; INT8 also where `allow_int8` says so.

    Raises:
        StaleError: there is no passing certificate of what is in the folder now.
        TuningRequestError: a backend or a precision that is not known, or nothing is left.
    """
    _require_known(backends, precisions)
    bound = binding(recipe, folder)
    certificate = require_certificate(recipe, folder, bound)
    default = Configuration.default_of(recipe)
    refused = _refused(recipe, folder, backends, certificate, bound)
    proven = _proven_kinds(recipe, refused)
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
        (backend, precision)
        for backend, precision in proven
        if (not backends or backend in backends) and (not precisions or precision in precisions)
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
        binding=bound,
    )


def _require_known(backends: Sequence[str], precisions: Sequence[str]) -> None:
    """Refuse names that are no backend's and no precision's.

    Raises:
        TuningRequestError: with the nearest known name.
    """
    for given, known in ((backends, tuple(ARTIFACT_SUFFIX)), (precisions, PRECISIONS)):
        for name in given:
            if name not in known:
                raise TuningRequestError(f"{name!r}: {did_you_mean(name, known)}")


def _refused(
    recipe: Recipe,
    folder: BuildFolder,
    backends: Sequence[str],
    certificate: Mapping[str, Any],
    bound: Mapping[str, Any],
) -> dict[str, str]:
    """Reasons why backends, INT8 and half precisions are left out, by name."""
    devices = usable_devices(recipe, folder)
    refused = {
        backend: why
        for backend in ARTIFACT_SUFFIX
        if backend in (*recipe.backends, *backends)
        and (why := _why_not(backend, recipe, certificate, devices))
    }
    int8 = _why_no_int8(recipe, folder, bound)
    if int8:
        refused["int8"] = int8
    exported, failed = exported_variants(recipe, folder), not_exported(folder)
    for variant in _halves(recipe):
        if variant not in exported or not has_passed(certificate, variant):
            refused[str(variant)] = failed.get(str(variant), "it did not pass parity")
    return refused


def _halves(recipe: Recipe) -> list[Variant]:
    """The recipe's variants in half precision."""
    return [variant for variant in wanted_variants(recipe) if variant.precision in HALF_PRECISIONS]


def _proven_kinds(recipe: Recipe, refused: Mapping[str, str]) -> list[Kind]:
    """Verified kinds that are not refused: float32, half precisions, INT8."""
    wanted = [Variant(backend) for backend in recipe.ships] + [*_halves(recipe), INT8]
    return [
        (variant.backend, variant.precision)
        for variant in wanted
        if not {variant.backend, variant.precision, str(variant)} & set(refused)
        if variant.backend in recipe.ships
    ]


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


def _why_no_int8(recipe: Recipe, folder: BuildFolder, bound: Mapping[str, Any]) -> str:
    """Why INT8 is no candidate; empty where it is one."""
    if recipe.options.device.startswith("cuda"):
        return f"it runs on the CPU, and the recipe asks for {recipe.options.device}"
    try:
        certificate = require_int8(recipe, folder, bound)
    except StaleError as err:
        return str(err)
    metrics = certificate["metrics"]
    before, now = ({n: both[p] for n, both in metrics.items()} for p in ("float32", "int8"))
    return "; ".join(Gate(**certificate["gate"]).broken(before, now))


def _shapes(default: Configuration, kinds: Sequence[Kind], cores: int) -> list[Configuration]:
    """Pairs of threads and workers, powers of two; those that fill the cores first.

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
