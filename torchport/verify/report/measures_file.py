"""Reads and writes `measures.json`, from which the page can be rendered again.

write_measures(folder.measures, [measure_graph(...)], certificate_sha256)
read_measures(folder.measures, certificate_sha256)       # None if they are of another certificate
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchport.errors import SignatureError
from torchport.store.files import read_json, write_json
from torchport.verify.outputs.layer_errors import LayerError
from torchport.verify.report.measures import BackendMeasures, GraphMeasures, ShownInput
from torchport_runtime import Signature

FORMAT = 1


def write_measures(path: Path, measures: Sequence[GraphMeasures], certificate_sha256: str) -> None:
    """Write the measures of all graphs, bound to the digest of their certificate."""
    graphs = [
        {
            "graph": graph.graph,
            "signature": graph.signature.to_json(),
            "backends": [asdict(backend) for backend in graph.backends],
            "layers": [asdict(layer) for layer in graph.layers],
            "eager": asdict(graph.eager),
            "notes": graph.notes,
        }
        for graph in measures
    ]
    head = {"format": FORMAT, "certificate_sha256": certificate_sha256}
    write_json(path, head | {"graphs": _written(graphs)})


def read_measures(path: Path, certificate_sha256: str) -> list[GraphMeasures] | None:
    """Measures of a certificate; None if missing, damaged or of another certificate."""
    value = read_json(path, "format", "certificate_sha256", "graphs")
    if value is None or value["format"] != FORMAT or value["certificate_sha256"] != certificate_sha256:
        return None
    try:
        return [_graph(entry) for entry in value["graphs"]]
    except (KeyError, TypeError, ValueError, AttributeError, SignatureError):
        return None


def _written(value: Any) -> Any:
    """The value with numbers that JSON lacks as text: `inf`."""
    if isinstance(value, Mapping):
        return {key: _written(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _graph(entry: Mapping[str, Any]) -> GraphMeasures:
    return GraphMeasures(
        graph=entry["graph"],
        signature=Signature.from_json(entry["signature"]),
        backends=tuple(_backend(backend) for backend in entry["backends"]),
        layers=tuple(_layer(layer) for layer in entry["layers"]),
        eager=_backend(entry["eager"]),
        notes=tuple(entry["notes"]),
    )


def _backend(entry: Mapping[str, Any]) -> BackendMeasures:
    return BackendMeasures(
        backend=entry["backend"],
        quantiles=tuple(float(quantile) for quantile in entry["quantiles"]),
        latency_ms=float(entry["latency_ms"]),
        worst=tuple(ShownInput(**{**shown, "share": float(shown["share"])}) for shown in entry["worst"]),
    )


def _layer(entry: Mapping[str, Any]) -> LayerError:
    errors = {name: float(entry[name]) for name in ("error", "eager_error", "bound")}
    return LayerError(**{**entry, **errors, "operators": tuple(entry["operators"])})
