"""A worker's process, seen from the front: start, messages, end.

    host = WorkerHost(environment={"OMP_NUM_THREADS": "1"})
    await host.start()
    host.send(member, Predict(...))      # member.take(report) follows, or member.host_gone(end)

Most hosts have one member, a model's worker; several small models may share a host. The process gets one
order at a time, from its members in turn; rows of models that stream join and leave without being waited
for. The process itself, its output and its end are `process.py`'s.
Everything here runs on the front's event loop.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import msgspec

from torchport.child_process import how_it_ended
from torchport.server.dispatch.arena import Arena
from torchport.server.dispatch.placing import AnswerBox
from torchport.server.dispatch.process import Process
from torchport.server.dispatch.worker_log import log_report
from torchport.server.wire import (
    HEADER,
    MAX_FRAME,
    Answered,
    Join,
    Leave,
    Left,
    Logged,
    Partial,
    Report,
    Sampled,
    Unload,
    decode_report,
    encode_frame,
)

LEAVE_S = 10.0
"""Seconds that a process has to end after it was told to. Then it is killed."""

CUT_OFF_S = 1.0
"""Seconds that a process has to end after it has closed its end of the channel. Then it is killed."""


@dataclass(frozen=True)
class End:
    """How a process ended.

    `from_outside`: whether it died of a SIGKILL that the server did not send.
    """

    reason: str
    from_outside: bool
    output: str


class Member(Protocol):
    """A model in a worker's process; `slot` is its number there."""

    slot: int

    def order_sent(self, order: Any) -> None: ...

    def take(self, report: Report) -> None: ...

    def host_gone(self, end: End) -> None: ...


class WorkerHost(asyncio.Protocol):
    """One process: its members, their orders and reports, its end."""

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        hidden: str = "",
        python: str = sys.executable,
        name: str = "",
        arena: Arena | None = None,
    ) -> None:
        self.name, self.arena = name, arena
        self._environment, self._hidden, self._python = environment, hidden, python
        self.members: dict[int, Member] = {}
        self._current: Member | None = None
        self._waiting: deque[tuple[Member, Any]] = deque()
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._process: Process | None = None
        self._lifeline = -1
        self._box: AnswerBox | None = None
        self._leaving: asyncio.TimerHandle | None = None
        self._killed_because: str | None = None
        self._exit_code: int | None = None
        self._is_cut_off = False
        self.is_ending = False
        """Whether the process is ending and takes no more members."""

    # Starting and ending it.

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def resident_bytes(self) -> int:
        """Current resident memory of the process in bytes; 0 if ended."""
        import psutil

        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.pid else 0
        except psutil.Error:
            return 0

    async def start(self) -> None:
        """Start the process.

        Call it on the event loop's thread: on Linux a child dies with the thread that started it.

        Raises:
            OSError, RuntimeError: it cannot be started. Then nothing is left of it.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._spawn(theirs.fileno())
            ours.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self, ours)
        except BaseException as err:
            # Without a channel it would have no owner.
            self.kill(f"its channel could not be opened: {err}")
            self._close_files()
            ours.close()
            raise
        self._send_next()

    def _spawn(self, channel: int) -> None:
        environment = dict(os.environ)
        if self._hidden:
            pattern = re.compile(self._hidden)
            environment = {name: text for name, text in environment.items() if not pattern.fullmatch(name)}
        environment |= self._environment
        self._box = AnswerBox.create()
        lifeline, self._lifeline = os.pipe()
        memory = [owner.file if owner is not None else -1 for owner in (self.arena, self._box)]
        files = [channel, lifeline, *memory]
        try:
            command = [self._python, "-P", "-u", "-m", "torchport.server.worker", *map(str, files)]
            self._process = Process(
                command,
                environment,
                pass_fds=[file for file in files if file >= 0],
                name=self.name,
                ended=self._ended,
            )
        finally:
            os.close(lifeline)

    def kill(self, reason: str) -> None:
        """Kill the process and its children."""
        self.is_ending = True
        self._killed_because = self._killed_because or reason
        if self._process is not None:
            self._process.kill()

    def disconnect(self) -> None:
        """Close this end of the channel, so that the process ends.

        A process that waits for an order ends by that, a busy one by its lifeline. One that does neither,
        because it is stopped or stuck, is killed after `LEAVE_S` seconds.
        """
        self.is_ending = True
        if self._transport is not None:
            self._transport.close()
        self._close_lifeline()
        if self._leaving is None:
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(LEAVE_S, self.kill, "it did not end when it was told to")

    def _close_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    def _close_files(self) -> None:
        self._close_lifeline()
        self.arena = None
        if self._box is not None:
            self._box.close()
            self._box = None

    # Orders and reports.

    def add(self, member: Member) -> None:
        self.members[member.slot] = member

    def remove(self, member: Member) -> None:
        """Remove a member; the process ends with its last one."""
        if self.members.pop(member.slot, None) is None:
            return
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not member)
        if not self.members:
            self.disconnect()
        elif not self.is_ending:
            self._write(Unload(member.slot))
            if self._current is member:
                self._current = None
                self._send_next()

    def send(self, member: Member, order: Any) -> None:
        """Send an order once the process has answered the earlier ones.

        Those that the process is not waited for are sent at once, if no order of the member waits, and no
        other member is answered: that one's batch may cost the process its life.
        """
        waits = any(waiting is member for waiting, _ in self._waiting) or self._current not in (None, member)
        if isinstance(order, Join | Leave) and self._transport is not None and not waits:
            self._write(order)
            member.order_sent(order)
            return
        self._waiting.append((member, order))
        self._send_next()

    def _send_next(self) -> None:
        while self._current is None and self._waiting and self._transport is not None:
            member, order = self._waiting.popleft()
            if not isinstance(order, Join | Leave):
                self._current = member
            self._write(order)
            member.order_sent(order)

    def _write(self, message: object) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.is_ending:
            # It was told to end before it had a channel.
            transport.close()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if length > MAX_FRAME:
                self.kill(f"it announced a report of {length} bytes")
                return
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                try:
                    report = decode_report(view[HEADER.size : end])
                    if isinstance(report, Answered) and self._box is not None:
                        self._box.take_out(report)
                except msgspec.DecodeError as err:
                    report = err
            del self._buffer[:end]
            if isinstance(report, msgspec.DecodeError):
                self.kill(f"it wrote what is no report ({report})")
                return
            self._take(report)

    def _take(self, report: Report) -> None:
        if isinstance(report, Logged):
            if self._process is not None:
                self._process.note(f"{report.message}\n{report.traceback}".strip())
            log_report(report, self.name, self.pid)
            return
        member = self.members.get(report.slot)
        if (
            not isinstance(report, Partial | Left | Sampled)
            and member is not None
            and member is self._current
        ):
            # Others go first: a member that is never out of work must not keep them waiting.
            self._current = None
            self._send_next()
        if member is not None:
            member.take(report)

    # Its end.

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_cut_off = True
        if self._exit_code is not None:
            self._finalize()
        elif not self.is_ending:
            # As a rule it is ending by itself, and its exit code will say how. One that closed the channel
            # and lives on is of no use.
            reason = "it closed its end of the channel"
            asyncio.get_running_loop().call_later(CUT_OFF_S, self.kill, reason)

    def _ended(self, code: int) -> None:
        """Note the exit code; finalize once the channel is empty.

        Answers may still be in the channel.
        """
        self._exit_code = code
        if self._is_cut_off:
            self._finalize()
        else:
            # A child of its own may hold the channel open; then there is no end of it to wait for.
            asyncio.get_running_loop().call_later(0.2, self._finalize)

    def _finalize(self) -> None:
        if self._exit_code is None:
            return
        code, self._exit_code = self._exit_code, None
        self.is_ending = True
        self._close_files()
        if self._transport is not None:
            self._transport.close()
        if self._leaving is not None:
            self._leaving.cancel()
        output = self._process.output if self._process is not None else ""
        from_outside = code == -signal.SIGKILL and self._killed_because is None
        end = End(self._killed_because or f"it {how_it_ended(code)}", from_outside, output)
        members, self.members = list(self.members.values()), {}
        for member in members:
            member.host_gone(end)


class SharedHosts:
    """The processes that models share, by the name in their configs."""

    def __init__(self) -> None:
        self._hosts: dict[str, WorkerHost] = {}

    def find(self, name: str) -> WorkerHost | None:
        """The process of that name; None if missing or ending."""
        host = self._hosts.get(name)
        return host if host is not None and not host.is_ending else None

    def keep(self, name: str, host: WorkerHost) -> None:
        self._hosts[name] = host
