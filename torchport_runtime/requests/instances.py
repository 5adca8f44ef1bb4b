"""What clients of KServe and TensorFlow Serving send beside `instances`: parameters, a signature's name.

{"instances": [[4.0]], "parameters": {"k": 3}, "signature_name": "serving_default"}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torchport_runtime.errors import BadRequest
from torchport_runtime.suggest import did_you_mean

DEFAULT_SIGNATURE = "serving_default"
"""The name by which TensorFlow Serving's clients ask for a model's usual signature."""

_BESIDE = ("parameters", "signature_name")


class Asked(Protocol):
    """A request, as far as parameters change it: an `InferenceRequest`."""

    fields: Mapping[str, Any]
    graphs: tuple[str, ...]
    known_fields: list[str] | None

    def refuse_unknown_fields(self, known: Iterable[str]) -> None:
        """Refuse fields that are not known."""


def only_instances(request: Asked, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A body without what may come beside `instances`, which the request takes over.

    Parameters become fields of the request, unless the query or a form has fields of these names. A
    signature's name changes nothing.

    Raises:
        BadRequest: a parameter is no number, truth or text, or unknown to the handler; the name is of no
            graph.
    """
    if "instances" not in body or not any(name in body for name in _BESIDE):
        return body
    _check_name(body.get("signature_name"), request.graphs)
    parameters = _parameters(body.get("parameters"))
    request.fields = {**parameters, **request.fields}
    if request.known_fields is not None:
        request.refuse_unknown_fields(request.known_fields)
    return {name: value for name, value in body.items() if name not in _BESIDE}


def _check_name(name: Any, graphs: tuple[str, ...]) -> None:
    if name is None or name in (DEFAULT_SIGNATURE, ""):
        return
    if not isinstance(name, str) or name not in graphs:
        known = [*graphs, DEFAULT_SIGNATURE]
        raise BadRequest(f"signature_name {str(name)[:40]!r}: {did_you_mean(str(name)[:40], known)}")


def _parameters(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise BadRequest("'parameters' is to be an object, such as {\"k\": 3}")
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("body", "data"):
            raise BadRequest(f"parameter {name!r}: that is the body's own name")
        if value is not None and not isinstance(value, (str, int, float)):
            raise BadRequest(f"parameter {str(name)[:40]!r}: a number, a truth or text is expected")
        if value is not None:
            found[name] = int(value) if isinstance(value, bool) else value
    return found
