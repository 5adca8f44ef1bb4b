"""Two servers asked the same: requests as they are written, answers as they can be compared."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

IGNORED_KEYS = frozenset(
    {
        "pid",  # Of a worker.
        "id",  # TorchServe's worker is called by its port, ours by a number.
        "startTime",
        "memoryUsage",
        "request_ids",
        "model_dir",
        "lastFailure",  # Ours alone: the traceback of a worker that could not load its model.
    }
)
"""Keys of JSON answers whose values are bound to differ."""

IGNORED_HEADERS = frozenset(
    {
        "x-request-id",  # Compared by a test of its own.
        "connection",  # TorchServe closes the connection after an error: a test of its own.
        "content-length",  # That of the body, which is compared.
        "retry-after",  # Ours alone, with a 503.
        "allow",  # Ours alone, with a 405.
        "vary",  # Ours alone, of answers that are compressed for who asks.
    }
)


@dataclass(frozen=True)
class Differs:
    """A difference that is known: `reason` is a key of `DIFFERENCES`.

    Where the statuses differ, nothing else is compared. Where they do not, exactly `facets` do.
    """

    reason: str
    theirs: int = 0
    ours: int = 0
    facets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One request. `port` is inference, management or metrics."""

    method: str
    path: str
    body: bytes | None = None
    headers: Iterable[tuple[str, str]] = ()
    differs: Differs | None = None
    port: str = "inference"

    def __str__(self) -> str:
        return f"{self.port} {self.method} {self.path[:80]} {self.body[:40] if self.body else ''}"


@dataclass(frozen=True)
class Answer:
    """What came back. Status 0 stands for an answer that was cut off."""

    status: int
    phrase: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)

    def facets(self) -> dict[str, Any]:
        """What is compared, by name; an error's type and message each by itself."""
        headers = {name: text for name, text in self.headers.items() if name not in IGNORED_HEADERS}
        found: dict[str, Any] = {"status": self.status, "headers": headers}
        try:
            body = json.loads(self.body)
        except ValueError:
            return found | {"body": self.body}
        if isinstance(body, dict) and set(body) == {"code", "type", "message"}:
            return found | {"code": body["code"], "type": body["type"], "message": body["message"]}
        return found | {"body": repr(comparable(body))}  # Their text: NaN equals NaN, 1 is not True.


def comparable(value: Any) -> Any:
    """The value without what is bound to differ; of workers only how many are ready: ours are listed
    until they are gone."""
    if isinstance(value, dict):
        kept = {key: comparable(inner) for key, inner in sorted(value.items()) if key not in IGNORED_KEYS}
        if isinstance(kept.get("workers"), list):
            kept["workers"] = sum(worker["status"] == "READY" for worker in kept["workers"])
        return kept
    if isinstance(value, list):
        return [comparable(inner) for inner in value]
    return value


def differing(theirs: Answer, ours: Answer) -> set[str]:
    """Names of the facets that differ. TorchServe gives no reason phrase where the handler gave none."""
    one, two = theirs.facets(), ours.facets()
    found = {name for name in {*one, *two} if name not in one or name not in two or one[name] != two[name]}
    return found | ({"phrase"} if theirs.phrase and theirs.phrase != ours.phrase else set())


def ask(url: str, step: Step, headers: Iterable[tuple[str, str]] = (), timeout: float = 60.0) -> Answer:
    """Send the request on a connection of its own, with no header that is not written here."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    try:
        return send(connection, step, headers)
    finally:
        connection.close()


def send(
    connection: http.client.HTTPConnection, step: Step, headers: Iterable[tuple[str, str]] = ()
) -> Answer:
    """Send the request and read its answer."""
    connection.putrequest(step.method, step.path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", "localhost")
    written = [*step.headers, *headers]
    if step.body is not None and not any(name.lower() == "transfer-encoding" for name, _ in written):
        connection.putheader("Content-Length", str(len(step.body)))
    for name, text in written:
        connection.putheader(name, text.encode("latin-1"))
    try:
        connection.endheaders(step.body)
        answer = connection.getresponse()
        found = {name.lower(): text for name, text in answer.getheaders()}
        return Answer(answer.status, answer.reason, found, answer.read())
    except (http.client.HTTPException, ConnectionError):
        return Answer(0)


@dataclass(frozen=True)
class Both:
    """A real TorchServe and our server, by their URLs, and the store of both."""

    theirs: dict[str, str]
    ours: dict[str, str]
    store: Path

    def ask(self, step: Step) -> tuple[Answer, Answer]:
        """Their answer and ours."""
        with ThreadPoolExecutor(2) as pool:
            theirs, ours = (pool.submit(ask, urls[step.port], step) for urls in (self.theirs, self.ours))
            return theirs.result(), ours.result()

    def compare(self, step: Step) -> tuple[Answer, Answer]:
        """Ask both, and hold the answers against each other and against what is known to differ."""
        theirs, ours = self.ask(step)
        known = step.differs
        if known is not None and known.theirs != known.ours:
            assert (theirs.status, ours.status) == (known.theirs, known.ours), (str(step), theirs, ours)
        else:
            expected = set(known.facets) if known is not None else set()
            assert differing(theirs, ours) == expected, (str(step), theirs, ours)
        return theirs, ours
