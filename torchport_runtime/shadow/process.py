"""A `Shadow`'s process: `python -m torchport_runtime.shadow.process SOCKET LIFELINE`.

Once loaded, it uses idle processor time only: its scheduling class is the idle one, if the system has
that. If memory
is short, Linux ends it first. It ends with its worker, however that ends: LIFELINE is a pipe that nothing
is written to, and that closes then. It ends by SIGPROF if one comparison takes too much processor time.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import signal
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from torchport_runtime.backends.backend import Backend, open_backend
from torchport_runtime.errors import BackendError
from torchport_runtime.options import BackendOptions
from torchport_runtime.shadow.comparison import Allowed, Difference, compare
from torchport_runtime.shadow.messages import Arrays, ShadowResult
from torchport_runtime.signature import Signature

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
LOWEST = 19
"""Niceness of the lowest priority."""
SLICE_NS = 100_000_000
"""Time slice in nanoseconds; the longest that Linux gives."""


@dataclass
class SecondBackend:
    """The second backend's loaded graphs.

    `kept`: maximum difference so far of each graph whose example is stored.
    """

    signatures: dict[str, Signature]
    backends: dict[str, Backend]
    allowed: dict[str, Allowed]
    examples: str
    kept: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, start: Mapping[str, Any]) -> SecondBackend:
        """Open every graph.

        Raises:
            BackendError: an artifact, a library or a device is missing.
        """
        folder, options = Path(start["folder"]), BackendOptions(**start["options"])
        signatures = {name: Signature.from_json(graph) for name, graph in start["signatures"].items()}
        backends = {
            name: open_backend(folder / f"{name}{options.artifact_suffix}", signature, options)
            for name, signature in signatures.items()
        }
        for name, signature in signatures.items():
            backends[name].run(signature.zeros())
        allowed = {
            name: Allowed.of_certificate(folder / "parity.json", name, start["bounded_by"])
            for name in signatures
        }
        return cls(signatures, backends, allowed, start["examples"])

    def compare(self, graph: str, inputs: Arrays, outputs: Arrays) -> ShadowResult:
        """Run the rows again and compare."""
        signature = self.signatures[graph]
        try:
            again = self.backends[graph].run(inputs)
        except BackendError as err:
            rows = len(next(iter(outputs.values()))) if signature.batch_dim is not None else 1
            return ShadowResult(rows, rows, math.inf, str(err))
        difference = compare(signature, outputs, again, self.allowed[graph])
        if self.examples and difference.disagreeing:
            self._keep(graph, inputs, outputs, again, difference)
        return ShadowResult(difference.rows, difference.disagreeing, difference.greatest)

    def _keep(
        self, graph: str, inputs: Arrays, first: Arrays, second: Arrays, difference: Difference
    ) -> None:
        """Store the row that differs most, with both answers, per graph."""
        if difference.greatest < self.kept.get(graph, -1.0):
            return
        row = slice(None)
        if self.signatures[graph].batch_dim is not None:
            row = slice(difference.worst, difference.worst + 1)
        arrays = {f"input.{name}": array[row] for name, array in inputs.items()}
        arrays |= {f"first.{name}": array[row] for name, array in first.items()}
        arrays |= {f"second.{name}": array[row] for name, array in second.items()}
        target = Path(self.examples) / f"{graph}-{os.getppid()}.npz"
        temporary = target.with_suffix(".part")
        try:
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            temporary.replace(target)
        except OSError as err:
            logger.warning("shadow: the example could not be kept in %s: %s", self.examples, err)
            return
        self.kept[graph] = difference.greatest


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    end_with_worker(int(sys.argv[2]))
    be_the_first_to_go()
    # Ctrl-C and a terminal's end are for the server: this process ends with its worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Its default is to end the process, whatever that is doing, and in which thread. Both are inherited.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    with contextlib.suppress(EOFError, ConnectionError):
        start = connection.recv()
        if start["callers_wait"]:
            yield_to_everyone()
        try:
            second = SecondBackend.load(start)
        except (BackendError, OSError) as err:
            connection.send(str(err))
            return
        yield_to_everyone()
        connection.send("")
        while True:
            sample = connection.recv()
            signal.setitimer(signal.ITIMER_PROF, start["processor_s"])
            result = second.compare(*sample)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send(tuple(result))
    # Not by the long way through torch's clean-up: who comes last at everything would be long about it.
    os._exit(0)


def end_with_worker(lifeline: int) -> None:
    """End this process when its worker ends or closes the lifeline.

    It ends even if the worker dies of SIGKILL.
    """
    if sys.platform == "linux":
        # For a backend that keeps the interpreter's lock. It follows the thread that started this process: a
        # `Shadow` has one for that.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def be_the_first_to_go() -> None:
    """Let Linux end this process first if memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def yield_to_everyone() -> None:
    """Give every thread of this process the lowest scheduling priority."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
    if not hasattr(os, "SCHED_IDLE"):
        return
    for thread in os.listdir("/proc/self/task"):
        _lengthen_slices(int(thread))
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))
    # Linux weighs the sessions of processes against each other, where it groups by them, by this number.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(LOWEST), encoding="ascii")


def _lengthen_slices(thread: int) -> None:
    """Ask for time slices of a tenth of a second.

    A thread that wakes with shorter slices, as all others have, need not wait for the end of this one's.
    The idle class alone ensures that only if Linux does not first divide the processors among sessions, as
    it does by default outside of containers. Linux before 6.12 refuses, and nothing is lost.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return
    # struct sched_attr: size, policy, flags, nice, priority, runtime (the slice in ns), deadline, period.
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, LOWEST, 0, SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(number, thread, attributes, 0)


_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""Number of the system call `sched_setattr`, by machine: Python has no function for it."""


if __name__ == "__main__":
    main()
