"""One client's request as a handler sees it, and its answer.

TorchServe gives a handler one mapping per request: `body` (or `data`), and the fields of query and form.
JSON is decoded already if the content type says so. `InferenceRequest` reads that mapping. Everything
wrong in it becomes a `BadRequest` with a reason.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchport_runtime.errors import BadRequest, SignatureError
from torchport_runtime.requests.instances import only_instances
from torchport_runtime.signature import Signature, TensorSpec
from torchport_runtime.suggest import did_you_mean

_HOW_TO_SEND = (
    "send JSON with the header 'Content-Type: application/json' (curl --json BODY), a file with curl -T FILE"
)


@dataclass(slots=True)
class Answer:
    """The answer to one client; `value` is bytes or for JSON."""

    value: Any
    content_type: str = "application/json"
    status: int = 200


@dataclass
class InferenceRequest:
    """One client's request.

    Args:
        fields: `body` or `data`, and the named fields of query and form, as the server gave them.
        headers: the request's headers, names in lower case; empty if the server gives none.
    """

    fields: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    batched: bool = False
    """Whether the client sent several rows, so that the answer is a list of answers."""
    graph: str = "main"
    """The graph that the decoded tensors enter; `decode` sets it if a model has several."""
    graphs: tuple[str, ...] = ("main",)
    """Names of the model's graphs."""
    known_fields: list[str] | None = None
    """What the handler takes beside the body, once `refuse_unknown_fields` has been told; None before."""

    @property
    def wants_explanation(self) -> bool:
        """Whether the client asked `/explanations` and not `/predictions`."""
        return self.headers.get("explain") == "True"

    @property
    def body(self) -> Any:
        """The body: bytes, text, or decoded JSON.

        Raises:
            BadRequest: the body is missing.
        """
        for name in ("body", "data"):
            value = self.fields.get(name)
            if isinstance(value, (bytearray, memoryview)):
                value = bytes(value)
            if value is not None and value != b"" and value != "":
                return value
        others = sorted(set(self.fields) - {"body", "data"})
        hint = f" (form fields came: {', '.join(others)[:80]})" if others else ""
        raise BadRequest(f"the request has no body{hint}: {_HOW_TO_SEND}")

    @property
    def content(self) -> bytes:
        """The body as bytes, for handlers of images and other files.

        Takes raw bytes, and base64 in JSON: `{"b64": "..."}`.

        Raises:
            BadRequest: the body is JSON of another shape, or not base64.
        """
        body = self.body
        if isinstance(body, bytes) and body[:1] == b"{" and b'"b64"' in body[:64]:
            body = self.json()
        if isinstance(body, bytes):
            return body
        if isinstance(body, Mapping) and isinstance(body.get("b64"), str):
            body = body["b64"]
        if isinstance(body, str):
            try:
                return base64.b64decode(body, validate=True)
            except (binascii.Error, ValueError) as err:
                raise BadRequest(f"text is not base64 ({err}): send the file's bytes") from err
        raise BadRequest(
            f"JSON of type {type(body).__name__} where a file is expected: send the file's bytes "
            '(curl -T FILE), or {"b64": "..."}'
        )

    def json(self) -> Any:
        """The body as decoded JSON.

        Raises:
            BadRequest: the body is not UTF-8, or not JSON; the message says where.
        """
        body = self.body
        if not isinstance(body, (bytes, str)):
            return body
        try:
            text = body.decode("utf-8") if isinstance(body, bytes) else body
            return json.loads(text, parse_constant=_refuse_constant)
        except UnicodeDecodeError as err:
            raise BadRequest("the body is not UTF-8 text: JSON is expected") from err
        except json.JSONDecodeError as err:
            raise BadRequest(
                f"the body is not JSON: {err.msg} at line {err.lineno} column {err.colno}"
            ) from err
        except RecursionError as err:
            raise BadRequest("the body's JSON is nested too deep") from err
        except ValueError as err:  # Python reads no whole number of more than 4,300 digits.
            raise BadRequest(f"the body's JSON holds a number that is too long: {err}") from err

    def param(self, name: str, default: int, *, low: int, high: int) -> int:
        """A whole number from the query or a form (`curl -F k=3`).

        A missing field gives `default`.

        Raises:
            BadRequest: not a whole number from `low` to `high`.
        """
        value = self.fields.get(name)
        if value is None:
            return default
        text = self.text_param(name, "")
        number = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else low - 1
        if not low <= number <= high:
            raise BadRequest(f"{name}={text[:40]!r}: a whole number from {low} to {high} is expected")
        return number

    def text_param(self, name: str, default: str) -> str:
        """A form's field as text; `default` if it is missing."""
        value = self.fields.get(name)
        if value is None:
            return default
        return bytes(value).decode("utf-8", "replace") if _is_bytes(value) else str(value)

    def refuse_unknown_fields(self, known: Iterable[str]) -> None:
        """Refuse form fields that are not `known`: they are typing errors.

        Raises:
            BadRequest: a field is unknown; the message names the nearest known one.
        """
        names = self.known_fields = list(known)
        for name in self.fields:
            if name not in ("body", "data") and name not in names:
                if str(name).lstrip()[:1] in ("{", "["):
                    raise BadRequest(f"a form came whose field is JSON (curl -d sends one): {_HOW_TO_SEND}")
                raise BadRequest(f"unknown field {str(name)[:40]!r}: {did_you_mean(str(name)[:40], names)}")

    def values(self, signature: Signature, outputs: Mapping[str, np.ndarray]) -> Any:
        """Outputs as a value for JSON.

        A single row loses its batch dimension. Several outputs are given by name.
        """
        one_row = signature.batch_dim is not None and not self.batched
        values = {name: (array[0] if one_row else array).tolist() for name, array in outputs.items()}
        return values if len(values) > 1 else next(iter(values.values()))

    def tensors(self, signature: Signature) -> dict[str, np.ndarray]:
        """The body's JSON as arrays of `signature`'s inputs.

        The arrays have a leading batch dimension.

        Takes one row (`[4.0]`, or `{"x": [4.0]}`), several (`[[4.0], [5.0]]`, or
        `{"x": [[4.0], [5.0]]}`), or `{"instances": [row, row]}`; `batched` says which it was.

        Raises:
            BadRequest: wrong JSON, text for numbers, no rows, rows of different lengths, a name
                that is no input.
        """
        value = self.json()
        if isinstance(value, Mapping) and "instances" in value:
            value = only_instances(self, value)
            if len(value) > 1:
                raise BadRequest(
                    "beside 'instances' nothing else is expected than parameters, signature_name"
                )
            return self._instances(value["instances"], signature)
        named = self._named(value, signature)
        tensors: dict[str, np.ndarray] = {}
        batched = set()
        for name, spec in signature.inputs.items():
            if name not in named:
                continue
            array = as_array(name, named[name], spec)
            is_row = signature.batch_dim is not None and array.ndim == len(spec.shape) - 1
            tensors[name] = array[None] if is_row else array
            batched.add(not is_row)
        if not batched:
            raise BadRequest(f"nothing was given: at least one of {list(signature.inputs)} is expected")
        if len(batched) > 1:
            raise BadRequest("some inputs are one row and others are several: send the same of each")
        self.batched = batched.pop() and signature.batch_dim is not None
        _refuse_empty(tensors)
        return tensors

    def _instances(self, rows: Any, signature: Signature) -> dict[str, np.ndarray]:
        if signature.batch_dim is None:
            raise BadRequest("this model takes one row at a time: send it without 'instances'")
        if not isinstance(rows, list) or not rows:
            raise BadRequest("'instances' is to be a list of at least one row")
        named = [self._named(row, signature) for row in rows]
        self.batched = True
        return {
            name: as_array(name, [row[name] for row in named], spec)
            for name, spec in signature.inputs.items()
            if self._in_all(name, named)
        }

    @staticmethod
    def _in_all(name: str, rows: list[Mapping[str, Any]]) -> bool:
        """Whether all rows have an input; refuse one that only some have."""
        count = sum(name in row for row in rows)
        if 0 < count < len(rows):
            raise BadRequest(
                f"input {name!r} is in {count} of {len(rows)} instances: give it in all or in none"
            )
        return count > 0

    @staticmethod
    def _named(value: Any, signature: Signature) -> Mapping[str, Any]:
        names = list(signature.inputs)
        if not isinstance(value, Mapping):
            needed = [name for name in names if signature.inputs[name].default is None] or names
            if len(needed) > 1:
                raise BadRequest(f"this model has several inputs: send an object of {names}")
            return {needed[0]: value}
        for name in value:
            if name not in signature.inputs:
                raise BadRequest(f"unknown input {name!r}: {did_you_mean(str(name), names)}")
        for name in names:
            if name not in value and signature.inputs[name].default is None:
                raise BadRequest(f"input {name!r} is missing: expected {signature.inputs[name]}")
        return value


def as_array(name: str, value: Any, spec: TensorSpec) -> np.ndarray:
    """Convert nested lists or an array to the input's dtype.

    Raises:
        BadRequest: not numbers, numbers that the dtype cannot hold, another number of dimensions.
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, RecursionError) as err:
        raise BadRequest(f"input {name!r}: rows of different lengths, expected {spec}") from err
    wanted = spec.numpy_dtype
    if array.size == 0:
        raise BadRequest(f"input {name!r}: 0 rows or 0 values, expected {spec}")
    if array.dtype.kind == "O" and all(type(v) in (int, float) for v in array.flat):
        try:
            array = array.astype(np.float64)  # Whole numbers beyond 64 bits.
        except OverflowError as err:
            raise BadRequest(f"input {name!r}: too great a number for {spec.dtype}") from err
    if array.dtype.kind not in "biuf":
        raise BadRequest(f"input {name!r}: text, null or an object for a number, expected {spec}")
    if (array.dtype.kind == "b") != (wanted.kind == "b"):
        wrong = "numbers for true and false" if wanted.kind == "b" else "true and false for numbers"
        raise BadRequest(f"input {name!r}: {wrong}, expected {spec}")
    if wanted.kind in "iu":
        if not np.isfinite(array).all():
            raise BadRequest(f"input {name!r} holds NaN or Inf: finite numbers are expected")
        limits = np.iinfo(wanted)
        # Beyond 2**53 a float64, which JSON's 1e18 becomes, no longer says which whole number it is.
        inexact = array.dtype.kind == "f" and bool((np.abs(array) >= 2**53).any())
        whole = not inexact and bool((array == np.floor(array)).all())
        if not whole or array.min() < limits.min or array.max() > limits.max:
            raise BadRequest(f"input {name!r}: not a whole number that {spec.dtype} can hold")
    if array.dtype != wanted:
        if wanted.kind == "f" and not _fits(array, wanted):
            if not np.isfinite(array).all():
                raise BadRequest(f"input {name!r} holds NaN or Inf: finite numbers are expected")
            raise BadRequest(f"input {name!r}: too great a number for {spec.dtype}")
        array = array.astype(wanted)
    if array.ndim not in (len(spec.shape), len(spec.shape) - 1):
        raise BadRequest(f"input {name!r}: shape {list(array.shape)}, expected {spec} or one row of it")
    return array


def _fits(array: np.ndarray, wanted: np.dtype[Any]) -> bool:
    """Whether every value is finite, also as a float of `wanted`."""
    greatest = _GREATEST[wanted]
    return bool(-greatest <= array.min() and array.max() <= greatest)


_GREATEST = {np.dtype(name): float(np.finfo(name).max) for name in ("float16", "float32", "float64")}


def _refuse_empty(tensors: Mapping[str, np.ndarray]) -> None:
    for name, array in tensors.items():
        if array.ndim and array.shape[0] == 0:
            raise BadRequest(f"input {name!r} has 0 rows: at least one is expected")


def _refuse_constant(name: str) -> Any:
    raise BadRequest(f"{name} in the body: finite numbers are expected")


def _is_bytes(value: object) -> bool:
    return isinstance(value, (bytes, bytearray, memoryview))


def error_answer(err: BadRequest | SignatureError) -> Answer:
    """The answer to a wrong request, in TorchServe's shape of an error."""
    return Answer(
        {"code": err.http_status, "type": "BadRequestException", "message": str(err)},
        status=err.http_status,
    )
