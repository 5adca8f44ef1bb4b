"""A loaded model: rows in, answers out, whatever its handler raises.

model = LoadedModel.load(order)
model.predict(order.rows, send_piece)
"""

from __future__ import annotations

import importlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from torchport.server.wire import Answer, Field, InferRow, Left, Load, MetricValue, Partial, Row
from torchport.server.worker.answers import answers_of, failed, too_large, within
from torchport.server.worker.context import Context, RequestProcessor
from torchport.server.worker.entry_point import EntryPoint, load_entry_point
from torchport.server.worker.live_rows import LiveRows
from torchport.server.worker.metrics import Metrics
from torchport.server.worker.sanitizing import text_of
from torchport.server.worker.streaming import StreamSocket

logger = logging.getLogger(__name__)

SERVER_VERSION = "0.12.0"
"""TorchServe's version, as handlers are told. Some check it for features."""


class LoadedModel:
    """One model version in this process.

    `signature` is the graphs' signatures as JSON; empty unless torchport made the archive.
    """

    def __init__(self, order: Load, entry: EntryPoint, context: Context, metrics: Metrics) -> None:
        self._order, self._entry, self._context, self._metrics = order, entry, context, metrics
        self.signature = signature_of(entry.owner)
        self.live = self._live_rows()
        """The live rows of a handler that streams; None if it does not."""

    def _live_rows(self) -> LiveRows | None:
        """What streams, in handlers of torchport's; a request envelope needs whole batches."""
        make = getattr(self._entry.owner, "live_rows", None) if self.signature else None
        rows = make() if callable(make) and not self._order.envelope else None
        return None if rows is None else LiveRows(rows, self._order.max_response_size, self._note_time)

    def _note_time(self, seconds: float) -> None:
        self._metrics.add_time("PredictionTime", round(seconds * 1000, 2))

    def join(self, number: int, row: Row) -> list[Partial | Left]:
        """Begin to stream the answer to a request; what failed is sent at once."""
        assert self.live is not None
        fields = {field.name: self._value(field) for field in row.fields}
        headers = RequestProcessor(row).get_request_properties()
        texts = {name.lower(): text for name, text in headers.items() if isinstance(text, str)}
        return self.live.join(number, row.id, fields, texts)

    @classmethod
    def load(cls, order: Load) -> LoadedModel:
        """Import the handler and let it load its model.

        The model's folder must be first on Python's path.

        Raises:
            Exception: whatever the handler raises.
        """
        folder = Path(order.folder)
        importlib.invalidate_caches()
        manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text(encoding="utf-8"))
        metrics = Metrics(order.model)
        for declared in order.metrics:
            metrics.add_metric_to_cache(declared.name, declared.unit, declared.dimensions, declared.kind)
        context = Context(
            model_name=order.model,
            model_dir=str(folder),
            manifest=manifest,
            batch_size=order.batch_size,
            gpu=order.gpu,
            limit_max_image_pixels=order.limit_max_image_pixels,
            metrics=metrics,
            model_yaml_config=_model_config(folder, manifest["model"].get("configFile")),
            server_version=SERVER_VERSION,
        )
        entry = load_entry_point(order.handler, order.envelope)
        entry.initialize(context)
        return cls(order, entry, context, metrics)

    @property
    def name(self) -> str:
        """The model and its version, for the log."""
        return f"{self._order.model} {self._order.version}"

    @property
    def description(self) -> str:
        """The model's backends, or its handler's name, for the log."""
        if not self.signature:
            return self._order.handler
        backends = self._entry.owner.backends
        return ", ".join(f"{n}: {getattr(b, 'provider', type(b).__name__)}" for n, b in backends.items())

    def predict(self, rows: list[Row], send_piece: Callable[[int, Answer], None]) -> list[Answer]:
        """Answer rows with the handler; its exceptions become error answers.

        Raises:
            SystemExit: the handler ends its process.
        """
        try:
            values = self._handled(rows, send_piece)
        except SystemExit:
            raise
        except MemoryError:
            logger.exception("out of memory")
            return failed(507, "Out of resources", len(rows))
        except BaseException as err:
            # The handler is a user's: what it raises is the answer to this batch, as on TorchServe. Some of
            # it is no `Exception`, such as asyncio's CancelledError.
            return self._fault(err, len(rows))
        return within(self._order.max_response_size, answers_of(values, len(rows), self._context))

    def _handled(self, rows: list[Row], send_piece: Callable[[int, Answer], None]) -> Any:
        """What the handler returns for these rows."""
        places: dict[str, int] = {}
        for index, row in enumerate(rows):
            # Clients choose ids: two of the same must not get each other's pieces. None has a space in it.
            places[f"{row.id} {index}" if row.id in places else row.id] = index
        ids = {index: id for id, index in places.items()}

        def send(id: str, answer: Answer) -> None:
            limit, size = self._order.max_response_size, len(answer.body)
            if limit and size > limit:
                raise ValueError(too_large(size, limit))
            send_piece(places[id], answer)

        context = self._context
        context.request_ids = ids
        context.request_processor = [RequestProcessor(row) for row in rows]
        context.cl_socket = StreamSocket(send)
        self._metrics.set_request_ids(ids)
        data = [{field.name: self._value(field) for field in row.fields} for row in rows]
        started = time.perf_counter()
        values = self._entry.handle(data, context)
        self._note_time(time.perf_counter() - started)
        return values

    def infer(self, rows: list[InferRow]) -> list[Answer]:
        """Run tensors without the handler's decoding and encoding.

        An archive that torchport did not make answers 400.
        """
        handler = self._entry.owner
        if not self.signature:
            message = (
                f"{self._order.model} has no signature: ask /predictions, or make its archive with torchport"
            )
            return [Answer(status=400, body=message.encode(), error="BadRequestException")] * len(rows)
        from torchport.server.worker.tensors import answer_tensors

        try:
            answers = answer_tensors(handler, rows)
        except MemoryError:
            logger.exception("out of memory")
            return failed(507, "Out of resources", len(rows))
        return within(self._order.max_response_size, answers)

    def close(self) -> None:
        """Close the handler's shadow, if it has one."""
        close = self._of_shadow("close")
        if callable(close):
            close()

    @property
    def has_pending_metrics(self) -> bool:
        """Whether the handler's shadow has results to report.

        The shadows of archives' runtimes have this as `has_news`.
        """
        return self._of_shadow("has_news") is True

    def take_samples(self) -> list[MetricValue]:
        """Metrics of the handler and its shadow since the last call."""
        report = self._of_shadow("report")
        if self.has_pending_metrics and callable(report):
            try:
                report(self._context.metrics)
            except Exception:
                logger.exception("the shadow cannot report")
        return self._metrics.take()

    def _of_shadow(self, name: str) -> Any:
        """An attribute of the handler's shadow; None without one.

        A handler that is not torchport's may have something else of that name.
        """
        if not self.signature:
            return None
        return getattr(getattr(self._entry.owner, "shadow", None), name, None)

    def _value(self, field: Field) -> Any:
        """A field as TorchServe's handlers get it: decoded JSON, text or bytes."""
        if not self._order.decode_input:
            return field.value
        try:
            if field.content_type == "application/json":
                return _decode_json(field.value)
            if field.content_type.startswith("text"):
                return field.value.decode("utf-8")
        except (ValueError, RecursionError):
            pass  # The handler gets the bytes, and says what is wrong with them.
        return field.value

    def _fault(self, err: BaseException, count: int) -> list[Answer]:
        if type(err).__name__ == "PredictionException" and isinstance(getattr(err, "error_code", None), int):
            code, message = err.error_code, text_of(getattr(err, "message", None))  # type: ignore[attr-defined]
            logger.warning("the handler refused the batch: %s", message)
            return failed(code, message, count)
        logger.error("the handler failed", exc_info=err)
        if "CUDA" in text_of(err):
            return failed(507, "Out of resources", count)
        return failed(503, "Prediction failed", count)


def signature_of(owner: Any) -> bytes:
    """The signatures of a handler's graphs as JSON; empty unless they are those of torchport's runtime."""
    try:
        signatures = {name: signature.to_json() for name, signature in owner.signatures.items()}
        encoded = msgspec.json.encode(signatures)
        _read_signatures(encoded)
    except Exception:
        return b""  # A handler of somebody else's, which may have something of that name.
    return encoded


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int | str]


class _Graph(msgspec.Struct):
    inputs: dict[str, _Tensor]
    outputs: dict[str, _Tensor]


_read_signatures = msgspec.json.Decoder(dict[str, _Graph]).decode


def _decode_json(text: bytearray) -> Any:
    try:
        return _decode_strict_json(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        # NaN, halves of surrogate pairs, numbers beyond any float: Python takes them.
        return json.loads(text.decode("utf-8"))


_decode_strict_json = msgspec.json.Decoder().decode


def _model_config(folder: Path, name: str | None) -> dict[str, Any]:
    if not name:
        return {}
    import yaml

    config = yaml.safe_load((folder / name).read_text(encoding="utf-8"))
    return config if isinstance(config, dict) else {}
