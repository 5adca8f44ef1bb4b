"""Logs that an operator can use: a record for each traceback, and whose it is; a line for each change."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.server.archives import write_archive
from tests.server.waiting import lines_with, wait_until
from torchport.server.logs import JsonFormatter, TextFormatter, current_request
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

HANDLER = """
    import logging
    import logging.config
    import os
    import threading

    def handle(data, context):
        if data is None:
            return
        what = bytes(data[0]["body"]).decode()
        log = logging.getLogger("mine")
        if what == "fails":
            raise ValueError("no such word\\ud800")
        if what == "logs":
            try:
                raise KeyError("inner")
            except KeyError:
                log.exception("caught in the handler")
            log.warning("a warning of %s", "mine")
            log.info("an information of mine")
        if what == "thread":
            def fail():
                raise OSError("in a thread")
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
        if what == "child":
            child = os.fork()
            if not child:
                log.error("of a child")
                os._exit(0)
            os.waitpid(child, 0)
        if what == "broken message":
            class Broken:
                def __str__(self):
                    raise ValueError("no text")
            log.error("%s", Broken())
        if what == "configures":
            logging.config.dictConfig({"version": 1})
            raise ValueError("after configuring")
        return [what] * len(data)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Its log is JSON: a record is a line."""
    folder = tmp_path_factory.mktemp("logs")
    store = Store(folder / "store")
    config = {"minWorkers": 1, "maxWorkers": 1}
    for version in ("1.0", "2.0"):
        write_archive(store.path, "model", HANDLER, version=version, config=config)
    write_archive(store.path, "unloadable", "raise ImportError('no such thing')", config=config)
    settings = {"enable_grpc": "false", "log_format": "json", "enable_model_api": "true"}
    with start(store, folder / "run", settings=settings | {"load_models": "model"}) as server:
        yield server


def ask(server: ServerProcess, what: str, id: str) -> int:
    url = f"{server.urls['inference']}/predictions/model"
    return requests.post(url, data=what, headers={"X-Request-Id": id}, timeout=60).status_code


def records(server: ServerProcess, text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_with(server.log, text)]


@pytest.mark.server
def test_the_start_says_where_the_log_goes(server: ServerProcess) -> None:
    (found,) = records(server, "goes to standard error")
    assert str(server.run / "server.log") in found["message"]


@pytest.mark.server
@pytest.mark.parametrize(
    ("what", "text", "error"),
    [
        ("fails", "the handler failed", "ValueError: no such word"),
        ("logs", "caught in the handler", "KeyError: 'inner'"),
    ],
)
def test_a_traceback_is_one_error_with_its_request_its_model_and_its_worker(
    server: ServerProcess, what: str, text: str, error: str
) -> None:
    status = ask(server, what, f"{what}-17")
    assert status == (200 if what == "logs" else 503)
    wait_until(lambda: f"{what}-17" in server.log())
    (found,) = [record for record in records(server, f"{what}-17") if "exception" in record]
    assert found["level"] == "ERROR"
    assert text in found["message"]
    assert found["exception"].startswith("Traceback (most recent call last):")
    assert error in found["exception"]
    assert found["model"] == "model 2.0"
    assert found["request_id"] == f"{what}-17"
    assert f"[worker {found['worker']} of model 2.0]" in found["message"]
    lines = [json.loads(line)["message"] for line in server.log().splitlines()]
    assert not any("Traceback" in line or 'File "' in line for line in lines)


@pytest.mark.server
def test_what_a_handler_logs_has_its_level_and_the_id_of_its_request(server: ServerProcess) -> None:
    assert ask(server, "logs", "levels-18") == 200
    wait_until(lambda: "an information of mine [request levels-18]" in server.log())
    levels = {r["level"] for r in records(server, "a warning of mine") if r.get("request_id") == "levels-18"}
    assert levels == {"WARNING"}


@pytest.mark.server
def test_what_threads_and_children_log_costs_nobody_an_answer(server: ServerProcess) -> None:
    for what in ("thread", "child", "broken message", "next"):
        assert ask(server, what, "x") == 200
    (found,) = records(server, "in a thread")
    assert found["level"] == "ERROR"
    assert "OSError: in a thread" in found["exception"]
    assert lines_with(server.log, "ERROR mine: of a child")


@pytest.mark.server
def test_changes_of_the_models_leave_a_line_each(server: ServerProcess) -> None:
    url = f"{server.urls['management']}/models"
    for method, path, said in (
        ("PUT", "/model/1.0/set-default", "default version of model: 1.0, before 2.0"),
        ("PUT", "/model/2.0/set-default", "default version of model: 2.0, before 1.0"),
        ("PUT", "/model/2.0?min_worker=1&max_worker=3", "scaled model 2.0: 1 to 3 workers, before 1 to 1"),
        ("DELETE", "/model/1.0", "unregistered model 1.0"),
        ("POST", "?url=model-1.0.mar&initial_workers=0", "registered model-1.0.mar: "),
    ):
        headers = {"X-Request-Id": said.split(":")[0].replace(" ", "-")}
        assert requests.request(method, url + path, headers=headers, timeout=60).ok, path
        (found,) = records(server, said)
        assert found["level"] == "INFO"
        assert found["request_id"] == headers["X-Request-Id"]


@pytest.mark.server
def test_a_model_that_cannot_be_loaded_leaves_its_traceback(server: ServerProcess) -> None:
    url = f"{server.urls['management']}/models?url=unloadable-1.0.mar&initial_workers=1&synchronous=true"
    assert requests.post(url, timeout=120).status_code == 500
    found = records(server, "could not load its model")[0]
    assert found["level"] == "ERROR"
    assert found["model"] == "unloadable 1.0"
    assert "ImportError: no such thing" in found["exception"]


@pytest.mark.server
def test_a_handler_that_configures_logging_does_not_silence_the_worker(server: ServerProcess) -> None:
    # The last one of this worker: its handler's own loggers are what it made of them.
    assert ask(server, "configures", "configures-19") == 503
    (found,) = records(server, "configures-19")
    assert "ValueError: after configuring" in found["exception"]


def test_text_has_the_requests_and_the_traceback_in_one_record() -> None:
    record = logging.makeLogRecord(
        {
            "msg": "it failed",
            "levelname": "ERROR",
            "request_ids": ["a-1", "b-2"],
            "traceback": "Traceback\n  x",
        }
    )
    text = TextFormatter("%(levelname)s %(message)s").format(record)
    assert text == "ERROR it failed [request a-1, b-2]\nTraceback\n  x"


def test_an_id_that_the_message_has_is_not_said_twice() -> None:
    record = logging.makeLogRecord({"msg": "request a-1: it failed", "request_id": "a-1"})
    assert TextFormatter("%(message)s").format(record) == "request a-1: it failed"
    token = current_request.set("c-3")
    try:
        other = logging.makeLogRecord({"msg": "scaled"})
        assert TextFormatter("%(message)s").format(other) == "scaled [request c-3]"
        assert json.loads(JsonFormatter().format(other))["request_id"] == "c-3"
    finally:
        current_request.reset(token)
