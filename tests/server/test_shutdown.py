"""The end of a server: what Kubernetes does to it, a second signal, and what hangs meanwhile."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
import requests

from tests.server.archives import write_archive
from tests.server.grpc_client import ANSWERS, INFERENCE, prediction
from tests.server.metrics import metric
from tests.server.waiting import PATIENCE_S, comes_true, wait_until
from tests.server.wire import Wire
from torchport.server.signals import REPEATED_S
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start

pytestmark = pytest.mark.server

HANDLER = """
    import os
    import time


    def answer(row):
        text = bytes(row.get("data") or row.get("body")).decode()
        verb, _, rest = text.partition(" ")
        if verb == "hold":
            open(f"{rest}.held", "w").close()
            while not os.path.exists(rest):
                time.sleep(0.01)
        return text


    def handle(data, context):
        if data is None:
            return None
        time.sleep(0.005)
        return [answer(row) for row in data]
"""
PREDICTIONS = f"/{INFERENCE}/Predictions"
ONE_WORKER = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 8}

DRAIN_S = 4.0
SENDING_S = 2.0
"""How long requests are still sent after the signal, by those who have not heard of it yet."""

EXIT_S = 20.0
"""A pod has 30 s from the signal to its SIGKILL."""


@dataclass
class Traffic:
    """Requests without a pause from many connections, over HTTP and gRPC, until `stop` is set.

    `ends`: whether a connection is the last one of its client: nothing is asked after `connection: close`.
    `answers` has of each over HTTP when it was asked, and whether it said `connection: close`.
    """

    server: object
    ends: bool = False
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    answers: list[tuple[float, bool]] = field(default_factory=list)
    calls: int = 0
    failures: list[str] = field(default_factory=list)

    async def run(self, *, fresh: int = 0, kept: int = 0, called: int = 0) -> None:
        """`fresh`: a connection for each request. `kept`: one for all. `called`: over gRPC."""
        asking = [self._ask(number, keeps=number >= fresh) for number in range(fresh + kept)]
        if not called:
            await asyncio.gather(*asking)
            return
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.server.ports['grpc_inference']}") as channel:
            await asyncio.gather(*asking, *(self._call(channel, number) for number in range(called)))

    async def _ask(self, number: int, *, keeps: bool) -> None:
        connection, count = None, 0
        while not self.stop.is_set():
            body, asked = f"{number} {count}".encode(), time.monotonic()
            try:
                connection = connection or await self._connected()
                closes = await self._exchange(*connection, body, keeps=keeps)
            except (OSError, EOFError) as err:
                self.failures.append(f"connection {number}, request {count}: {err!r}")
                return
            self.answers.append((asked, closes))
            count += 1
            if closes and self.ends:
                break
            if closes or not keeps:
                connection[1].close()
                connection = None
        if connection:
            connection[1].close()

    async def _connected(self):
        parts = urlsplit(self.server.urls["inference"])
        return await asyncio.open_connection(parts.hostname, parts.port)

    async def _exchange(self, reader, writer, body: bytes, *, keeps: bool) -> bool:
        close = b"" if keeps else b"connection: close\r\n"
        head = b"POST /predictions/model HTTP/1.1\r\nhost: localhost\r\n%bcontent-length: %d\r\n\r\n"
        writer.write(head % (close, len(body)) + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        (length,) = (line for line in lines if line.startswith(b"content-length:"))
        answer = await reader.readexactly(int(length.split(b":")[1]))
        if b" 200 " not in lines[0] or answer != body:
            self.failures.append(f"{body!r}: {lines[0]!r} {answer!r}")
        return b"connection: close" in lines

    async def _call(self, channel, number: int) -> None:
        method = channel.unary_unary(
            PREDICTIONS, lambda m: m.SerializeToString(), ANSWERS[PREDICTIONS].FromString
        )
        while not self.stop.is_set():
            body = f"call {number} {self.calls}".encode()
            try:
                answer = await method(prediction("model", data=body), timeout=PATIENCE_S)
            except grpc.RpcError as err:
                # Once nothing listens, a call does not even leave the client.
                if not (self.ends and "failed to connect" in err.details()):
                    self.failures.append(f"call {number}: {err!r}")
                return
            if answer.prediction != body:
                self.failures.append(f"{body!r}: {answer.prediction!r}")
            self.calls += 1


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write_archive(folder, "model", HANDLER, config=ONE_WORKER)
    return Store(folder)


def ask(server, body, session=requests):
    return session.post(f"{server.urls['inference']}/predictions/model", data=body, timeout=PATIENCE_S)


def is_refused(server):
    """Whether nothing listens any more."""
    parts = urlsplit(server.urls["inference"])
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False


def readiness(server):
    with suppress(requests.ConnectionError):
        return requests.get(f"{server.urls['inference']}/ping", timeout=PATIENCE_S).status_code
    return None


def test_no_request_fails_while_an_orchestrator_takes_the_server_away(store, tmp_path):
    gate = tmp_path / "gate"
    settings = {"drain_time": str(DRAIN_S)}
    with start(store, tmp_path / "run", settings=settings) as server:
        held = []
        holding = threading.Thread(target=lambda: held.append(ask(server, f"hold {gate}")))

        async def events():
            traffic = Traffic(server)
            running = asyncio.create_task(traffic.run(fresh=24, kept=24, called=16))
            await asyncio.to_thread(wait_until, lambda: len(traffic.answers) > 200 and traffic.calls > 50)
            os.kill(server.pid, signal.SIGTERM)
            signalled = time.monotonic()
            assert await asyncio.to_thread(comes_true, lambda: readiness(server) == 503)
            unready = time.monotonic()
            await asyncio.sleep(max(0.1, signalled + SENDING_S - unready))
            traffic.stop.set()
            await running
            return traffic, signalled, unready

        traffic, signalled, unready = asyncio.run(events())
        stopped = time.monotonic()
        assert stopped < signalled + DRAIN_S, "the machine is too busy for this test"
        holding.start()
        wait_until(lambda: gate.with_name("gate.held").exists())
        wait_until(lambda: is_refused(server))
        assert server.process.poll() is None
        gate.touch()
        holding.join()
        assert server.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - signalled < EXIT_S
    assert traffic.failures == []
    late = [closes for asked, closes in traffic.answers if asked > unready]
    assert late
    assert all(late)
    assert [(answer.status_code, answer.text) for answer in held] == [(200, f"hold {gate}")]
    assert held[0].headers["connection"] == "close"
    assert "Traceback" not in server.log()


def test_a_server_without_a_drain_time_answers_what_it_took_and_loses_nothing(store, tmp_path):
    with start(store, tmp_path / "run") as server:

        async def events():
            traffic = Traffic(server, ends=True)
            running = asyncio.create_task(traffic.run(kept=64, called=32))
            await asyncio.to_thread(wait_until, lambda: len(traffic.answers) > 200 and traffic.calls > 100)
            os.kill(server.pid, signal.SIGTERM)
            await running
            return traffic

        traffic = asyncio.run(events())
        signalled = time.monotonic()
        assert server.process.wait(PATIENCE_S) == 0
        assert time.monotonic() - signalled < EXIT_S
    assert traffic.failures == []
    assert sum(closes for _, closes in traffic.answers) == 64


def test_requests_sent_ahead_are_answered_and_the_last_answer_says_close(store, tmp_path):
    gate = tmp_path / "gate"
    with start(store, tmp_path / "run", settings={"enable_grpc": "false"}) as server:
        bodies = [f"hold {gate}", "second", "third"]
        head = "POST /predictions/model HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{}"
        with Wire(server.urls["inference"]) as raw:
            raw.send("".join(head.format(len(body), body) for body in bodies).encode())
            wait_until(lambda: gate.with_name("gate.held").exists())
            os.kill(server.pid, signal.SIGTERM)
            wait_until(lambda: is_refused(server))
            gate.touch()
            answers = [raw.answer() for _ in bodies]
            assert [answer.body.decode() for answer in answers] == bodies
            assert ["connection" in answer.headers for answer in answers] == [False, False, True]
            assert raw.has_ended()
        assert server.process.wait(PATIENCE_S) == 0


def test_what_is_not_answered_in_time_is_refused(store, tmp_path):
    gate = tmp_path / "gate"
    settings = {"shutdown_timeout": "0.5", "enable_grpc": "false"}
    with start(store, tmp_path / "run", settings=settings) as server:
        with ThreadPoolExecutor(9) as threads:
            first = threads.submit(ask, server, f"hold {gate}")
            wait_until(lambda: gate.with_name("gate.held").exists())
            waiting = [threads.submit(ask, server, "late") for _ in range(8)]
            wait_until(lambda: metric(server, "torchport_queue_length", model_name="model") == 8)
            os.kill(server.pid, signal.SIGTERM)
            refused = [found.result() for found in (first, *waiting)]
        assert {answer.status_code for answer in refused} == {503}
        assert {answer.headers["connection"] for answer in refused} == {"close"}
        assert server.process.wait(PATIENCE_S) == 0


SLOW_YAML = b"".join(b"key%d: {a: [1, 2], b: [3, 4]}\n" % number for number in range(30_000))


@pytest.fixture(scope="module")
def hanging(tmp_path_factory):
    """A store with an archive whose requirements pip waits for, and one whose config takes long to read."""
    folder = tmp_path_factory.mktemp("hanging")
    files = {"requirements.txt": b"a-package-that-nobody-has\n"}
    write_archive(
        folder, "installing", HANDLER, files=files, manifest={"requirementsFile": "requirements.txt"}
    )
    manifest = {"configFile": "model-config.yaml"}
    write_archive(folder, "reading", HANDLER, files={"model-config.yaml": SLOW_YAML}, manifest=manifest)
    write_archive(folder, "model", HANDLER, config=ONE_WORKER)
    return Store(folder)


@pytest.fixture(params=[1, 2], ids=["one signal", "two signals"])
def signals(request):
    return request.param


def test_nothing_that_hangs_keeps_a_server_from_ending(hanging, tmp_path, signals):
    with socket.socket() as index:
        index.bind(("127.0.0.1", 0))
        index.listen()
        # An index of packages that accepts connections, and never says anything.
        url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        drain = 0.0 if signals == 1 else PATIENCE_S
        process = launch(hanging, tmp_path, drain, {"PIP_INDEX_URL": url, "PIP_CONFIG_FILE": os.devnull})
        front = psutil.Process(process.pid)

        def children(word):
            found = front.children(recursive=True)
            return [child for child in found if word in "".join(command(child))]

        wait_until(lambda: children("pip") and children("torchport.server.worker"))
        others = front.children()
        (worker,) = children("torchport.server.worker")
        # The first thing that it does is to have itself killed with the server; then a thread begins.
        wait_until(lambda: worker.num_threads() > 1)
        worker.suspend()
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        if signals == 2:
            wait_until(lambda: "a second signal" in (tmp_path / "log").read_text())
            process.send_signal(signal.SIGTERM)  # May count as the first one.
            time.sleep(2 * REPEATED_S)
            process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)
        assert time.monotonic() - began < EXIT_S
        assert code == (0 if signals == 1 else 128 + signal.SIGTERM)
        assert worker not in psutil.wait_procs([worker], timeout=10)[1]
        for process in others:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert not (tmp_path / "run" / "server.json").exists()
    assert "Traceback" not in (tmp_path / "log").read_text()


def command(process):
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def launch(store, folder, drain_s, environment):
    """A server that need not become ready; its log is in `folder`."""
    settings = {"install_py_dep_per_model": "true", "enable_grpc": "false", "model_store": str(store.path)}
    (folder / "config.properties").write_text("".join(f"{k}={v}\n" for k, v in settings.items()))
    arguments = ("--ts-config", "config.properties", "--run", "run", "--port", "0", "--ncs")
    arguments += ("--drain-time", str(drain_s))
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "torchport", "serve", *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
