"""What both servers are asked to manage: each scenario is asked in order, and compared at every step."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.targets.conformance_inference import DESCRIBED, JSON, OTHER_METHOD
from tests.targets.conformance_server import Differs, Step

LATER = "/models?url=later-1.0.mar"

WRONG_NUMBER = Differs("wrong-numbers", theirs=200, ours=400)
FORBIDDEN = Differs("refused-urls", theirs=404, ours=403)
MISTAKE = Differs("refused-urls", theirs=404, ours=400)
NOT_JSON = Differs("broken-json", theirs=500, ours=400)
HEAD = Differs("head", theirs=405, ours=200)
MESSAGE = Differs("messages", facets=("message",))
LAST_PAGE = Differs("last-page", facets=("body",))


def get(path: str, differs: Differs | None = None, **headers: str) -> Step:
    return Step("GET", path, None, [*headers.items()], differs, "management")


def post(path: str, differs: Differs | None = None, **parameters: object) -> Step:
    """Register by a JSON body where there are parameters."""
    body = json.dumps(parameters).encode() if parameters else None
    return Step("POST", path, body, JSON if body else (), differs, "management")


def posted(body: bytes, differs: Differs) -> Step:
    return Step("POST", "/models", body, JSON, differs, "management")


def put(path: str, differs: Differs | None = None) -> Step:
    return Step("PUT", path, None, (), differs, "management")


def delete(path: str, differs: Differs | None = None) -> Step:
    return Step("DELETE", path, None, (), differs, "management")


def options(path: str, differs: Differs | None = None) -> Step:
    return Step("OPTIONS", path, None, (), differs, "management")


def predict(path: str, body: bytes = b"x", differs: Differs | None = None) -> Step:
    return Step("POST", f"/predictions/{path}", body, (), differs)


SCENARIOS: dict[str, list[Step]] = {
    "listing": [
        get("/models"),
        get("/models/"),
        get("/models//"),
        get("/models?limit=1"),
        get("/models?limit=2", LAST_PAGE),
        get("/models?limit=1&next_page_token=1", LAST_PAGE),
        get("/models?limit=1&next_page_token=2"),
        get("/models?next_page_token=2"),
        get("/models?next_page_token=99"),
        get("/models?next_page_token=-3"),
        get("/models?limit=0"),
        get("/models?limit="),
        get("/models?limit=1&next_page_token="),
        get("/models?limit=-1"),
        get("/models?limit=1000"),
        get("/models?limit=x", WRONG_NUMBER),
        get("/models?limit=1.5", WRONG_NUMBER),
        get("/models?limit=99999999999", WRONG_NUMBER),
        get("/models?next_page_token=x", WRONG_NUMBER),
    ],
    "describing": [
        get("/models/echo"),
        get("/models/echo/"),
        get("/models/echo/1.0"),
        get("/models/echo/all"),
        get("/models/nobody"),
        get("/models/nobody/all"),
        get("/models/echo/9"),
        get("/models/echo/1.0/more"),
        get("/models/echo/1.0/set-default", OTHER_METHOD),
    ],
    "describing what the handler says": [
        get("/models/acts?customized=true"),
        get("/models/acts?customized=TRUE"),
        get("/models/acts?customized=maybe"),
        get("/models/acts/1.0?customized=true"),
        get("/models/acts/all?customized=true"),
        get("/models/echo?customized=true"),
        get(
            "/models/acts?customized=true",
            Differs("customized-metadata", facets=("body",)),
            **{"x-describe": "list"},
        ),
        get(
            "/models/acts?customized=true",
            Differs("customized-metadata", facets=("body",)),
            **{"x-describe": "text"},
        ),
        get("/models/acts?customized=true", **{"x-describe": "raise"}),
        get("/models/nobody?customized=true"),
        get("/models/echo/9?customized=true"),
    ],
    "other methods": [
        *(replace(get("/models"), method=method) for method in ("PATCH", "DELETE", "PUT", "OPTIONS")),
        *(replace(get("/models/echo"), method=method) for method in ("PATCH", "POST")),
        *(replace(get(path), method="HEAD", differs=HEAD) for path in ("/models", "/models/echo")),
        post("/models/echo/1.0/set-default"),
        put("/models/echo/1.0/more"),
        post("/v1/models/echo"),
        get("/"),
    ],
    "other paths": [
        get("/nothing"),
        get("/ping"),
        replace(predict("echo"), port="management"),
        get("/echo/x/y/set-default"),
        get("/token"),
        get("/v1/models"),
        get("/v1/models/echo"),
        get("/v1/models/echo:predict"),
        get("/v1/models/nobody"),
        get("/workflows", Differs("workflows", theirs=200, ours=404)),
        options("*", Differs("everything", theirs=500, ours=200)),
    ],
    "descriptions of the API": [
        options("/", DESCRIBED),
        get("/api-description", DESCRIBED),
        options("/models/echo", DESCRIBED),
        options("/models/echo/1.0", DESCRIBED),
        options("/models/nobody"),
    ],
    "registering from nowhere": [
        post("/models"),
        post("/models", url=None),
        post("/models?url=", MISTAKE),
        post("/models?url=none.mar"),
        post("/models?url=../echo-1.0.mar", MISTAKE),
        post("/models?url=/etc/passwd", FORBIDDEN),
        post("/models?url=ftp://nowhere/echo.mar", FORBIDDEN),
        post("/models?url=file:///etc/passwd", Differs("refused-urls", theirs=500, ours=403)),
        post("/models", MISTAKE, url=5),
        posted(b"{bad", NOT_JSON),
        posted(b"[]", NOT_JSON),
        posted(b"", NOT_JSON),
        post("/models?url=later-1.0.mar&runtime=cobol"),
        get("/models"),
    ],
    "registering what cannot be served": [
        post("/models?url=no_zip.mar", MESSAGE),
        post("/models?url=no_manifest.mar", MESSAGE),
        post("/models?url=echo-1.0.mar"),
        post("/models?url=unimportable-1.0.mar", MESSAGE),
        post("/models?url=handlerless-1.0.mar", Differs("unusable-archives", theirs=500, ours=400)),
        get("/models/unimportable"),
        get("/models"),
        get("/ping"),
    ],
    "registering without workers": [
        post(f"{LATER}&initial_workers=0"),
        get("/models/later"),
        predict("later", differs=MESSAGE),
        get("/models/later?customized=true", MESSAGE),
        get("/v1/models/later"),
        post(LATER),
        replace(get("/ping"), port="inference"),
        delete("/models/later"),
        get("/models/later"),
        predict("later"),
    ],
    "registering with no time to start": [
        post(f"{LATER}&startup_timeout=0&initial_workers=0"),
        get("/models/later"),
        delete("/models/later"),
    ],
    "registering with workers": [
        post(LATER),
        get("/models/later"),
        get("/v1/models/later"),
        predict("later", b"context"),
        post(LATER),
        delete("/models/later/9"),
        delete("/models/later/1.0"),
        delete("/models/later/1.0"),
    ],
    "registering by another name and with settings": [
        post(
            f"{LATER}&model_name=renamed&batch_size=3&max_batch_delay=20&response_timeout=9&startup_timeout=33"
            "&initial_workers=2"
        ),
        get("/models/renamed"),
        get("/models/later"),
        get("/models"),
        predict("renamed", b"context"),
        delete("/models/renamed"),
    ],
    "registering with another handler": [
        step
        for handler in ("second.py", "second.py:another", "second:another", "a/b/second.py:another")
        for step in (
            post(f"/models?url=other-1.0.mar&handler={handler}"),
            predict("other"),
            delete("/models/other"),
        )
    ],
    "registering by JSON": [
        post(
            "/models",
            url="later-1.0.mar",
            batch_size=2,
            max_batch_delay=7,
            initial_workers=1,
            synchronous=True,
        ),
        get("/models/later"),
        delete("/models/later"),
        post("/models", url="later-1.0.mar", initial_workers="0"),
        get("/models/later", Differs("batch-delay-of-json", facets=("body",))),
        delete("/models/later"),
    ],
    "registering with numbers that are none": [
        post(f"{LATER}&initial_workers=x&batch_size=y", WRONG_NUMBER),
        delete("/models/later", Differs("wrong-numbers", theirs=200, ours=404)),
        post(f"{LATER}&initial_workers=-1", WRONG_NUMBER),
        delete("/models/later", Differs("wrong-numbers", theirs=200, ours=404)),
    ],
    "registering what has a config": [
        post("/models?url=configured-1.0.mar&initial_workers=0&response_timeout=99"),
        get("/models/configured"),
        delete("/models/configured"),
        post("/models?url=configured-1.0.mar&batch_size=2&max_batch_delay=10"),
        get("/models/configured"),
        delete("/models/configured"),
    ],
    "registering without waiting": [post(f"{LATER}&synchronous=false"), delete("/models/later")],
    "versions": [
        post(LATER),
        post("/models?url=later-2.0.mar"),
        get("/models/later"),
        get("/models/later/all"),
        predict("later/2.0"),
        delete("/models/later/1.0"),
        delete("/models/later"),
        put("/models/later/9/set-default", MESSAGE),
        put("/models/nobody/1.0/set-default"),
        put("/models/later/2.0/set-default"),
        get("/models/later"),
        delete("/models/later/1.0"),
        get("/models/later/all"),
        delete("/models/nobody"),
        delete("/models/nobody/1.0"),
        delete("/models/later/2.0"),
    ],
    "scaling": [
        post(f"{LATER}&initial_workers=0"),
        put("/models/later?max_worker=0&synchronous=true"),
        put("/models/later?min_worker=2&synchronous=true"),
        get("/models/later"),
        put("/models/later?min_worker=1&max_worker=1&synchronous=true"),
        get("/models/later"),
        put("/models/later?min_worker=3&max_worker=2"),
        put("/models/later?min_worker=x&synchronous=true", WRONG_NUMBER),
        put("/models/later/1.0?min_worker=1&max_worker=3&synchronous=true"),
        get("/models/later"),
        put("/models/later?model_version=1.0&min_worker=1&synchronous=true"),
        put("/models/later/9?min_worker=1"),
        put("/models/nobody?min_worker=1"),
        put("/models/later?min_worker=0&synchronous=true"),
        get("/models/later"),
        predict("later", differs=MESSAGE),
        put("/models/later?synchronous=true"),
        get("/models/later"),
        put("/models/later?min_worker=1"),
        put("/models/later?min_worker=-1", Differs("wrong-numbers", theirs=500, ours=400)),
        delete("/models/later"),
    ],
}
