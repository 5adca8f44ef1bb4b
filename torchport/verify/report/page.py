"""Renders `parity.html`: certificate, measures and served answers, as charts and tables.

    write_bytes(folder.report, report(certificate, [measure_graph(...)]))
    renew_report(folder)                 # the same from parity.json, measures.json and serving.json

The page is whole in itself: no script, no font, nothing that is fetched; light or dark as the reader's
system is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torchport.store.files import write_bytes
from torchport.store.folders import BuildFolder
from torchport.store.hashing import sha256_file
from torchport.store.serving_record import records_of_certificate
from torchport.store.variants import Variant
from torchport.verify.report.charts import Series, curves, dots, growth, heat_map
from torchport.verify.report.measures import QUANTILES, GraphMeasures
from torchport.verify.report.measures_file import read_measures
from torchport.verify.report.templates import render

_SIZE = re.compile(r"([A-Za-z_]\w*)=(\d+)")
_SWEPT = re.compile(r"[A-Za-z_]\w*=\d+(,? [A-Za-z_]\w*=\d+)*")
_SAMPLE = re.compile(r"sample \d+")
MOST_ROWS = 60
"""Cases in one chart: of more, those with the greatest errors."""


def report(
    certificate: Mapping[str, Any],
    measures: Sequence[GraphMeasures],
    served: Sequence[Mapping[str, Any]] = (),
) -> bytes:
    """The report page in UTF-8.

    `served` are the records of servers that answered with this certificate's archive.
    """
    answers = [
        {**row, "scores": f"{row['scores_apart']:.2g}" if row["scores_apart"] else "-"}
        for row in certificate.get("answers", [])
    ]
    values = {
        "certificate": certificate,
        "graphs": [_graph(certificate, measured) for measured in measures],
        "answers": answers,
        "served": served,
    }
    return render("torchport.verify.report", "parity.html.j2", **values).encode("utf-8")


def renew_report(folder: BuildFolder, archive_sha256: str | None = None) -> None:
    """Render `parity.html` again, after the records of what servers answered have changed.

    It shows the records of the archive that is given, or of the last one that was asked. Without the
    certificate, or without `measures.json` of exactly that certificate, the page stays as it is.
    """
    certificate = folder.certificate()
    if certificate is None:
        return
    digest = sha256_file(folder.parity)
    measures = read_measures(folder.measures, digest)
    if measures is not None:
        served = records_of_certificate(folder, digest, archive_sha256)
        write_bytes(folder.report, report(certificate, measures, served))


def _graph(certificate: Mapping[str, Any], measured: GraphMeasures) -> dict[str, Any]:
    results = [r for r in certificate["results"] if r["graph"] == measured.graph]
    shares = {f"{Variant.of(r)} on {r['device']}": _shares(r) for r in results}
    shown = worst_cases(list(shares.values()))
    names = [*(m.backend for m in measured.backends), "eager float32"]
    spread = [
        Series(name, [("", q) for q in found.quantiles])
        for name, found in zip(names, (*measured.backends, measured.eager), strict=True)
    ]
    layers = measured.layers
    return {
        "name": measured.graph,
        "signature": measured.signature,
        "results": results,
        "reference": certificate["reference"].get(measured.graph, ""),
        "errors": _errors(results),
        "case_names": list(shares),
        "cases": dots(
            [
                Series(name, [(case, found[case]) for case in shown if case in found])
                for name, found in shares.items()
            ]
        ),
        "cases_left_out": len({case for found in shares.values() for case in found}) - len(shown),
        "spread_names": names,
        "spread": curves(spread, QUANTILES),
        "maps": [(name, _map(found)) for name, found in shares.items()],
        "layers": growth(
            [str(layer) for layer in layers],
            [
                Series(name, [(str(layer), getattr(layer, attribute)) for layer in layers])
                for name, attribute in (
                    ("onnxruntime", "error"),
                    ("eager float32", "eager_error"),
                    ("bound", "bound"),
                )
            ],
        )
        if layers
        else "",
        "backends": [*measured.backends, measured.eager],
        "worst": [(m.backend, m.worst) for m in measured.backends if m.worst],
        "notes": measured.notes,
    }


def _shares(result: Mapping[str, Any]) -> dict[str, float]:
    """Largest error of each case, in shares of its bound, in order of comparison."""
    found: dict[str, float] = {}
    for row in result["comparisons"]:
        share = float(row["error"]) / row["bound"] if "bound" in row else float(row["unequal"] > 0) * 1e9
        found[row["case"]] = max(found.get(row["case"], 0.0), share)
    return found


def worst_cases(backends: Sequence[Mapping[str, float]]) -> list[str]:
    """The cases to show, in the order in which they were run."""
    worst: dict[str, float] = {}
    for found in backends:
        for case, share in found.items():
            worst[case] = max(worst.get(case, 0.0), share)
    kept = set(sorted(worst, key=lambda case: -worst[case])[:MOST_ROWS])
    return [case for case in worst if case in kept]


def _errors(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Largest error of each backend over the real samples, by floating output.

    The first is the error of the model itself in that precision and on that device.
    """
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for result in results:
        variant, device = Variant.of(result), result["device"]
        for row in result["comparisons"]:
            if "bound" not in row or not _SAMPLE.fullmatch(row["case"]):
                continue
            for name, greatest, errors in (
                (f"eager {variant.precision}", row["eager_error"], row["eager_errors"]),
                (str(variant), row["error"], row["errors"]),
            ):
                of = found.setdefault((row["output"], f"{name} on {device}"), {})
                for key, value in {"greatest": greatest, **errors}.items():
                    of[key] = max(of.get(key, 0.0), float(value))
    return [{"output": output, "by": by, **errors} for (output, by), errors in found.items()]


def _map(shares: Mapping[str, float]) -> str:
    """Charts of the sweeps over symbolic dimensions: lines for one, squares for two."""
    cells: dict[tuple[str, str], float] = {}
    for case, share in shares.items():
        if not _SWEPT.fullmatch(case):
            continue
        sizes = _SIZE.findall(case)
        if len(sizes) == 1:
            cells[sizes[0][0], sizes[0][1]] = share
        elif len(sizes) == 2:
            (one, a), (other, b) = sizes
            cells[f"{one}={a}, {other}", b] = share
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = sorted({column for _, column in cells}, key=int)
    return heat_map(rows, columns, cells) if cells else ""
