"""A connection of HTTP/2: frames to streams, and what streams write to frames.

Its `service` knows the methods, and runs them. Bounded are the calls at once, the bytes of headers, the time
to send a frame or a message and to take an answer, and what waits for a client that does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Protocol, cast

from torchport.server.grpc.calls import Method
from torchport.server.grpc.http2 import frames as h2
from torchport.server.grpc.http2.frame_reader import MAX_FRAME
from torchport.server.grpc.http2.frame_writer import BUFFERED, FrameWriter
from torchport.server.grpc.http2.frames import ConnectionFault
from torchport.server.grpc.http2.head import Head, MalformedHead
from torchport.server.grpc.http2.header_blocks import MAX_LIST_BYTES, HeaderBlocks, HeadersTooLarge
from torchport.server.grpc.http2.incoming import Message
from torchport.server.grpc.http2.stream import STREAM_WINDOW, Stream
from torchport.server.grpc.status import StatusCode
from torchport.server.http.body_memory import BodyMemory
from torchport.server.settings.settings import ServerSettings

MAX_STREAMS = 1000
"""Maximum number of calls at once on a connection. gRPC's clients let others wait."""

_WINDOW = h2.MAX_WINDOW
"""The connection's own window bounds nothing, because each read is worked off: streams have theirs."""

LINGER_S = 2.0
"""Seconds for which input is still read and dropped after the last answer, so that the client sees that."""

_ENDING = b"the end "
"""Payload of the ping whose answer says that the client knows of the end."""

_ENDING_S = 1.0
"""Seconds after which the client is taken to know."""


class Service(Protocol):
    """What a connection needs of its server."""

    settings: ServerSettings
    memory: BodyMemory
    buffer: memoryview
    connections: set[Http2Connection]
    is_ending: bool

    def method(self, path: str) -> Method | None:
        """The method by its path."""

    def has_room(self) -> bool:
        """Whether one more call may begin."""

    def begin(self, stream: Stream, message: Message | None) -> None:
        """Run the method of a call; None if it takes many messages."""


class Http2Connection(FrameWriter):
    """The connection of one client."""

    def __init__(self, service: Service) -> None:
        super().__init__(service.buffer, service.settings)
        self._service = service
        self.memory = service.memory
        self.streams: dict[int, Stream] = {}
        """Calls that have no status yet, or one that has not been sent."""
        self.peer = ""
        self._blocks = HeaderBlocks()
        self._last = 0
        """The last stream that the client has begun."""
        self._last_answered: int | None = None
        """Streams after this one are not answered, because the connection ends; None: it does not."""
        self._is_ending = False
        self._window_in = _WINDOW
        self.idle_since = time.monotonic()
        self._handlers = {
            h2.HEADERS: self._headers,
            h2.CONTINUATION: self._continuation,
            h2.RST_STREAM: self._reset,
            h2.SETTINGS: self._settings,
            h2.PING: self._ping,
            h2.WINDOW_UPDATE: self._window_update,
        }

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(BUFFERED)
        self._service.connections.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.peer = _peer(transport.get_extra_info("peername"))
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._closing = True
            self._transport.close()
            return
        values = (
            (h2.SETTING_MAX_STREAMS, MAX_STREAMS),
            (h2.SETTING_WINDOW, STREAM_WINDOW),
            (h2.SETTING_MAX_FRAME, MAX_FRAME),
            (h2.SETTING_MAX_HEADER_LIST, MAX_LIST_BYTES),
        )
        self.write(h2.settings(values) + h2.window_update(0, _WINDOW - h2.DEFAULT_WINDOW))
        if len(self._service.connections) > self.settings.max_connections:
            self.fault(ConnectionFault(h2.ENHANCE_YOUR_CALM, "too many connections"))
        elif self._service.is_ending:
            self.begin_ending()

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.connections.discard(self)
        self._closing = True
        self._rest = b""
        for stream in list(self.streams.values()):
            stream.lost()
        # They refer back to this connection, which would stay until a garbage collection.
        self._handlers = {}

    def eof_received(self) -> None:
        """Close the connection, by returning None."""

    # Frames.

    def frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == h2.PUSH_PROMISE:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a client pushes nothing")
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(flags, number, payload)

    def begin_data(self, number: int, size: int) -> Stream | None:
        if not number or number > self._last:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "data in a wrong place")
        self._window_in -= size
        if self._window_in < 0:
            raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "more data than was asked for")
        if self._window_in < _WINDOW // 2:
            self.write(h2.window_update(0, _WINDOW - self._window_in))
            self._window_in = _WINDOW
        stream = self.streams.get(number)
        if stream is None or stream.is_done:
            return None
        stream.window_in -= size
        if stream.is_remote_done or stream.window_in < 0:
            stream.drop(h2.STREAM_CLOSED if stream.is_remote_done else h2.FLOW_CONTROL_ERROR)
            return None
        return stream

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        block = self._blocks.begin(flags, number, payload)
        self._in_block = block is None
        if block is not None:
            self._block_ends(number, flags, block)

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._blocks.go_on(flags, number, payload)
        self._in_block = block is None
        if block is not None:
            self._block_ends(number, self._blocks.flags, block)

    def _block_ends(self, number: int, flags: int, block: bytes) -> None:
        """Begin a call by its headers. All are decoded: those that follow need it."""
        head: Head | None = None
        problem: Exception | None = None
        try:
            head = self._blocks.head(block)
        except (MalformedHead, HeadersTooLarge) as err:
            problem = err
        ends = bool(flags & h2.END_STREAM)
        if number <= self._last:
            self._trailers(number, ends=ends)
            return
        self._last = number
        if self._last_answered is not None:
            return
        if isinstance(problem, MalformedHead):
            self.write(h2.reset(number, h2.PROTOCOL_ERROR))
        elif head is None:
            self._refuse(number, StatusCode.RESOURCE_EXHAUSTED, "received metadata is too large", ends=ends)
        elif head.refusal:
            self.write(h2.refusal(number, head.refusal) + (b"" if ends else h2.reset(number, h2.NO_ERROR)))
        elif len(self.streams) >= MAX_STREAMS:
            self.write(h2.reset(number, h2.REFUSED_STREAM))
        elif not self._service.has_room():
            self._refuse(number, StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", ends=ends)
        else:
            self._begin(number, head, ends=ends)

    def _trailers(self, number: int, *, ends: bool) -> None:
        """Headers on a stream that has begun: what they say is of no interest."""
        stream = self.streams.get(number)
        if stream is not None and not stream.is_done:
            if stream.is_remote_done or not ends:
                stream.drop(h2.PROTOCOL_ERROR)
            else:
                stream.remote_end()

    def _refuse(self, number: int, code: StatusCode, details: str, *, ends: bool) -> None:
        answer = h2.trailers(number, code, details, (), only=True)
        self.write(answer + (b"" if ends else h2.reset(number, h2.NO_ERROR)))

    def _begin(self, number: int, head: Head, *, ends: bool) -> None:
        method = self._service.method(head.path)
        if method is None:
            self._refuse(number, StatusCode.UNIMPLEMENTED, "Method not found!", ends=ends)
            return
        stream = self.streams[number] = Stream(self, number, head, method)
        if method.takes_many:
            self._service.begin(stream, None)
        if ends:
            stream.remote_end()

    def begin(self, stream: Stream, message: Message) -> None:
        """Run the method of a call, whose message is there."""
        self._service.begin(stream, message)

    def _reset(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a reset of a wrong size")
        if not number or number > self._last:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a reset of no stream")
        stream = self.streams.get(number)
        if stream is not None:
            stream.lost()

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & h2.ACK and payload):
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "settings of a wrong size")
        if flags & h2.ACK:
            return
        self.is_open = True
        for at in range(0, len(payload), 6):
            key, value = int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + 6])
            if key == h2.SETTING_WINDOW:
                if value > h2.MAX_WINDOW:
                    raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "a window that is too large")
                for stream in self.streams.values():
                    stream.window_out += value - self.initial_window_out
                self.initial_window_out = value
            elif key == h2.SETTING_MAX_FRAME:
                if not h2.DEFAULT_MAX_FRAME <= value <= h2.LARGEST_MAX_FRAME:
                    raise ConnectionFault(h2.PROTOCOL_ERROR, "a frame size that none may ask for")
                self.max_frame_out = min(value, MAX_FRAME)
        self.write(h2.frame(h2.SETTINGS, h2.ACK, 0))
        self._may_flush = True

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a ping of a wrong size")
        if not flags & h2.ACK:
            self.write(h2.frame(h2.PING, h2.ACK, 0, payload))
        elif payload == _ENDING:
            self._client_knows()

    def _window_update(self, flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(h2.FRAME_SIZE_ERROR, "a window's update of a wrong size")
        size = int.from_bytes(payload) & h2.MAX_WINDOW
        if not number:
            self.window_out += size
            if not size or self.window_out > h2.MAX_WINDOW:
                raise ConnectionFault(h2.FLOW_CONTROL_ERROR, "a window that none may be")
        elif number > self._last:
            raise ConnectionFault(h2.PROTOCOL_ERROR, "a window of no stream")
        elif (stream := self.streams.get(number)) is not None:
            stream.window_out += size
            if not size or stream.window_out > h2.MAX_WINDOW:
                stream.drop(h2.FLOW_CONTROL_ERROR)
        self._may_flush = True

    def closed(self, stream: Stream) -> None:
        """Take note that a stream has ended."""
        self.streams.pop(stream.number, None)
        if not self.streams:
            self.idle_since = time.monotonic()
            if self._last_answered is not None:
                self.loop.call_soon(self._close_if_done)

    # The end, and bounds on time.

    def fault(self, error: ConnectionFault) -> None:
        """End the connection: the client breaks the protocol."""
        if not self._closing:
            self.write(h2.goaway(self._last, error.code, str(error)))
            self._close_lingering()
            for stream in list(self.streams.values()):
                stream.lost()

    def begin_ending(self) -> None:
        """Tell the client to begin no more calls. Those that are on their way are answered."""
        if not self._is_ending and not self._closing:
            self._is_ending = True
            self.write(h2.goaway(h2.MAX_STREAM_ID, h2.NO_ERROR) + h2.frame(h2.PING, 0, 0, _ENDING))
            self.loop.call_later(_ENDING_S, self._client_knows)

    def _client_knows(self) -> None:
        """Answer what has come, and no more: the client knows of the end."""
        if self._is_ending and self._last_answered is None:
            self._last_answered = self._last
            self.write(h2.goaway(self._last, h2.NO_ERROR))
            self._close_if_done()

    def _close_if_done(self) -> None:
        if not self.streams and not self._closing:
            self._close_lingering()

    def _close_lingering(self) -> None:
        """Close once the client has, or after `LINGER_S` seconds.

        Closing at once would reset the connection if there is unread input, and the last answer with it.
        """
        self._closing = True
        if self._turn is not None:
            self._turn.cancel()
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.loop.call_later(LINGER_S, self._transport.close)

    def close(self) -> None:
        """Close now; what is not answered is told so."""
        for stream in list(self.streams.values()):
            stream.cut(StatusCode.UNAVAILABLE, "the server is ending")
        self._closing = True
        self._transport.close()

    def is_idle(self, now: float) -> bool:
        """Whether the client has made no call for as long as HTTP's may keep a connection."""
        return not self.streams and now - self.idle_since > self.settings.keep_alive_timeout

    def enforce_time_limits(self, now: float) -> None:
        """End the connection, or its calls, whose client exceeds a time limit."""
        if self.leaves_answers(now):
            self._closing = True
            self._transport.abort()
        elif self._closing:
            return
        elif self.reading_since is not None and now - self.reading_since > self.settings.header_timeout:
            self.fault(ConnectionFault(h2.ENHANCE_YOUR_CALM, "a frame that does not come"))
        else:
            for stream in list(self.streams.values()):
                stream.enforce_time_limits(now)


def _peer(name: object) -> str:
    """A client's address in gRPC's form."""
    if not isinstance(name, tuple):
        return "unknown:"
    host, port = name[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
