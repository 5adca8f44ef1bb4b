"""Requests of tensors, without `decode` and `encode`: the Open Inference Protocol.

run_tensors(handler, [TensorRequest("main", {"x": array})])        # [{"y": array}]
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchport_runtime.errors import BadRequest, SignatureError, TorchportError
from torchport_runtime.requests.batching import common_sizes, run_together
from torchport_runtime.suggest import did_you_mean

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorRequest:
    """A request of tensors for one graph.

    `inputs` are arrays by name, with a leading batch dimension. `outputs` names the wanted outputs; empty
    for all.
    """

    graph: str
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...] = ()


def run_tensors(handler: Any, requests: Sequence[TensorRequest]) -> list[dict[str, np.ndarray] | Exception]:
    """Outputs or error of each request; equal sizes share a run."""
    results: dict[int, dict[str, np.ndarray] | Exception] = {}
    checked: dict[int, dict[str, np.ndarray]] = {}
    groups: dict[Any, list[int]] = {}
    for index, request in enumerate(requests):
        try:
            checked[index] = _checked(handler, request)
        except (BadRequest, SignatureError) as err:
            results[index] = err
        else:
            signature = handler.signatures[request.graph]
            alone = index if signature.batch_dim is None else None
            sizes = common_sizes(signature, checked[index], {})
            groups.setdefault((request.graph, alone, sizes), []).append(index)
    for (graph, _, _), members in groups.items():
        for index, outputs in zip(members, _run(handler, graph, members, checked), strict=True):
            wanted = requests[index].outputs
            if wanted and not isinstance(outputs, Exception):
                outputs = {name: outputs[name] for name in wanted}
            results[index] = outputs
    return [results[index] for index in range(len(requests))]


def _checked(handler: Any, request: TensorRequest) -> dict[str, np.ndarray]:
    if request.graph not in handler.signatures:
        raise BadRequest(f"no graph {request.graph!r}: {did_you_mean(request.graph, handler.signatures)}")
    signature = handler.signatures[request.graph]
    for name in request.outputs:
        if name not in signature.outputs:
            raise BadRequest(f"no output {name!r}: {did_you_mean(name, signature.outputs)}")
    inputs: dict[str, np.ndarray] = signature.with_defaults(dict(request.inputs))
    signature.check_inputs(inputs, any_batch=True)
    return inputs


def _run(
    handler: Any, graph: str, members: Sequence[int], checked: Mapping[int, dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray] | Exception]:
    signature, backend = handler.signatures[graph], handler.backends[graph]
    try:
        return list(run_together(signature, [checked[i] for i in members], {}, backend.run))
    except MemoryError:
        raise
    except Exception as err:  # A backend may raise anything: it costs the row that caused it only.
        if len(members) > 1:
            return [_run(handler, graph, [index], checked)[0] for index in members]
        logger.exception("the model failed on these tensors")
        known = isinstance(err, (BadRequest, SignatureError))
        return [err if known else TorchportError("the model failed on this input: see its log")]
