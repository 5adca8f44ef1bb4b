"""Carries out the front's orders on the models of this process.

models = Models(send, log, SharedMemory(-1, -1))
models.obey(order)                   # send(report) is called, once or more
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from torchport.server.wire import (
    Answer,
    Answered,
    Infer,
    InferRow,
    Join,
    Leave,
    Left,
    Load,
    Loaded,
    LoadFailed,
    MetricValue,
    Order,
    Partial,
    Predict,
    Row,
    Sampled,
    Unload,
)
from torchport.server.worker.answers import failed
from torchport.server.worker.log_reports import CALLS, WorkerLog
from torchport.server.worker.model import LoadedModel
from torchport.server.worker.model_space import ModelSpace
from torchport.server.worker.sanitizing import text_of, traceback_of
from torchport.server.worker.shared_memory import SharedMemory

logger = logging.getLogger(__name__)

MEMORY_EVERY_S = 0.5
"""Minimum seconds between two measurements of this process's memory."""


class Models:
    """The loaded models, by slot."""

    def __init__(self, send: Callable[..., None], log: WorkerLog, memory: SharedMemory) -> None:
        self._send, self._log, self._memory = send, log, memory
        self._models: dict[int, LoadedModel] = {}
        self._spaces: dict[int, ModelSpace] = {}
        self._resident, self._measured_at = 0, 0.0

    def obey(self, order: Order) -> bool:
        """Carry out one order; whether it was one of live rows, which takes no time."""
        if isinstance(order, Predict | Infer):
            self._answer(order)
        elif isinstance(order, Join | Leave):
            self._change_rows(order)
        elif isinstance(order, Load):
            self._load(order)
        elif isinstance(order, Unload):
            self._unload(order.slot)
        return isinstance(order, Join | Leave)

    @property
    def has_live_rows(self) -> bool:
        """Whether any model has answers to stream."""
        return any(model.live is not None and len(model.live) for model in self._models.values())

    def step(self) -> None:
        """Compute one step of the live rows of each model, and send what comes of it."""
        for slot, model in self._models.items():
            if model.live is not None and len(model.live):
                with self._space(slot), self._log.at(model.name, slot, model.live.ids):
                    self._send_all(slot, model, model.live.step())

    def _change_rows(self, order: Join | Leave) -> None:
        model = self._models[order.slot]
        assert model.live is not None
        ids = [order.row.id] if isinstance(order, Join) else model.live.ids
        with self._space(order.slot), self._log.at(model.name, order.slot, ids):
            if isinstance(order, Leave):
                self._send_all(order.slot, model, model.live.leave(order.batch))
                return
            self._memory.take_in_fields(order.row)
            self._send_all(order.slot, model, model.join(order.batch, order.row))

    def _send_all(self, slot: int, model: LoadedModel, reports: list[Partial | Left]) -> None:
        """Send pieces and ends; an end brings the model's metrics."""
        for report in reports:
            report.slot = slot
            if isinstance(report, Left):
                report.samples, report.memory = model.take_samples(), self._resident_bytes()
        if reports:
            self._send(*reports)

    @property
    def has_pending_metrics(self) -> bool:
        """Whether any model has metrics to report between batches."""
        return any(model.has_pending_metrics for model in self._models.values())

    def send_pending_metrics(self) -> None:
        """Send the metrics that handlers have added since their last answers."""
        for slot, model in self._models.items():
            with self._space(slot):
                samples = model.take_samples()
            if samples:
                self._send(Sampled(slot, samples))

    def _load(self, order: Load) -> None:
        folder = Path(order.folder)
        try:
            space = ModelSpace(folder) if order.shared else None
            if space is None:
                _live_in(folder)
            else:
                space.require_shareable()
                self._spaces[order.slot] = space
            with self._space(order.slot), self._log.at(f"{order.model} {order.version}", order.slot):
                model = self._models[order.slot] = LoadedModel.load(order)
                streams = model.live is not None
                loaded = Loaded(order.slot, model.description, model.signature, streams)
            if space is not None:
                space.require_shareable()
        except BaseException as err:
            # Whatever a user's handler raises: the front tells it to who asked for the model.
            reason = f"{type(err).__name__}: {text_of(err)}"
            self._send(LoadFailed(order.slot, reason, traceback_of(err, CALLS)))
            self._models.pop(order.slot, None)
            self._spaces.pop(order.slot, None)
            return
        self._send(loaded)

    def _unload(self, slot: int) -> None:
        model = self._models.pop(slot, None)
        try:
            if model is not None:
                with self._space(slot):
                    model.close()
        except Exception:
            logger.exception("a model cannot be closed")
        self._spaces.pop(slot, None)

    def _answer(self, order: Predict | Infer) -> None:
        slot, batch = order.slot, order.batch

        def send_piece(row: int, answer: Answer) -> None:
            self._send(Partial(slot, batch, row, answer))

        samples: list[MetricValue] = []
        try:
            with self._space(slot), self._at(slot, order.rows):
                self._memory.take_in(order)
                model = self._models[slot]
                if isinstance(order, Infer):
                    answers = model.infer(order.rows)
                else:
                    answers = model.predict(order.rows, send_piece)
                samples = model.take_samples()
        except SystemExit:
            raise
        except BaseException as err:
            # What a handler gives may fail wherever it is looked at; that costs its batch, and nobody else's.
            with suppress(BaseException), self._at(slot, order.rows):
                logger.error("the batch failed", exc_info=err)
            answers = failed(503, "Prediction failed", len(order.rows))
        self._memory.put_out(answers)
        order.rows.clear()  # They are not what is kept.
        self._send(Answered(slot, batch, answers, samples, self._resident_bytes(), self._memory.kept()))

    def _resident_bytes(self) -> int:
        if time.monotonic() - self._measured_at > MEMORY_EVERY_S:
            self._resident, self._measured_at = resident_bytes(), time.monotonic()
        return self._resident

    def _at(self, slot: int, rows: Sequence[Row | InferRow]) -> AbstractContextManager[None]:
        return self._log.at(self._models[slot].name, slot, [row.id for row in rows])

    def _space(self, slot: int) -> AbstractContextManager[None]:
        space = self._spaces.get(slot)
        return nullcontext() if space is None else space.entered()


def _live_in(folder: Path) -> None:
    """Make a folder the working directory and first on Python's path.

    Child processes inherit both.
    """
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), inherited] if inherited else [str(folder)])


def resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 if unknown."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
