"""Whatever the APIs' own descriptions allow, and what they do not, is answered as they say.

Requests are made from the descriptions: the statuses, types and shapes of the answers are to be among
those that are described, and none is the server's own failure.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, settings

from torchport.server.api import openapi
from torchport.store.folders import Store
from torchport.targets.torchport_serve import ServerProcess, start

schemathesis = pytest.importorskip("schemathesis")

from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

pytestmark = pytest.mark.server

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]
"""Not among them: that all that fits is taken, for what a model takes no schema can say; and that all that
does not fit is refused, for words other than "true" are false, as on TorchServe."""

MOST_WORKERS = 2
"""More are not started here: the server would start a thousand."""

bounded = settings(max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def server(linear_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`linear` is asked for predictions; `other` is scaled, removed and registered again."""
    store = tmp_path_factory.mktemp("store")
    shutil.copy(linear_archive, store)
    with start(
        Store(store),
        tmp_path_factory.mktemp("run"),
        settings={
            "default_workers_per_model": "1",
            "enable_model_api": "true",
            "load_models": "linear-1.0.mar,other=linear-1.0.mar",
        },
        arguments=("--ncs", "--no-grpc"),
    ) as running:
        yield running
        assert running.process.poll() is None
        assert "Traceback" not in running.log()


def described(description: dict[str, Any], **values: list[str]) -> Any:
    """A description in which some parameters have values that are of use: a random name finds no model."""
    schema = copy.deepcopy(description)
    for operations in schema["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "X-Request-Timeout-Ms":
                    parameter["schema"]["minimum"] = 60_000  # Less, and an answer may be 504.
                if parameter["name"] in values:
                    parameter["schema"] = {"type": "string", "enum": values[parameter["name"]]}
    return schemathesis.openapi.from_dict(schema)


versions = ["1.0", "9"]
inference = described(
    openapi.inference_description(), model_name=["linear", "nobody"], model_version=versions
)
management = described(
    openapi.management_description(),
    model_name=["other", "nobody"],
    model_version=versions,
    url=["linear-1.0.mar", "nobody-1.0.mar", "../x.mar"],
    handler=["regressor.py", "nobody.py", "../x.py"],
)
metrics = described(openapi.metrics_description())


def ask(case: Any, url: str) -> None:
    # As on TorchServe, any method is answered there.
    any_method = case.path in ("/ping", "/api-description")
    case.call_and_validate(
        base_url=url, checks=CHECKS, excluded_checks=[checks.unsupported_method] if any_method else []
    )


@inference.parametrize()
@bounded
def test_inference(case: Any, server: ServerProcess) -> None:
    ask(case, server.urls["inference"])


@management.parametrize()
@bounded
def test_management(case: Any, server: ServerProcess) -> None:
    asked = [case.query, case.body if isinstance(case.body, dict) else {}]
    numbers = ("min_worker", "max_worker", "initial_workers")
    if any(_is_many(values.get(name)) for values in asked for name in numbers):
        return
    try:
        ask(case, server.urls["management"])
    finally:
        _restore(server)


@metrics.parametrize()
@bounded
def test_metrics(case: Any, server: ServerProcess) -> None:
    ask(case, server.urls["metrics"])


def _is_many(value: Any) -> bool:
    text = str(value).strip()
    return text.isdigit() and int(text) > MOST_WORKERS


def _restore(server: ServerProcess) -> None:
    """What was removed is registered again, what was registered is removed, what has no worker gets one:
    whichever test comes next, it may ask the handler to describe itself."""
    with server.client() as client:
        names = set(client.models())
    url = f"{server.urls['management']}/models"
    for name in names - {"linear", "other"}:
        assert requests.delete(f"{url}/{name}", timeout=60).status_code == 200
    if "other" not in names:
        asked = {"url": "linear-1.0.mar", "model_name": "other"}
        assert requests.post(url, params=asked, timeout=60).status_code == 200
    elif requests.get(f"{url}/other", timeout=60).json()[0]["minWorkers"] == 0:
        asked = {"min_worker": "1", "synchronous": "true"}
        assert requests.put(f"{url}/other", params=asked, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("api", "description"),
    [
        ("inference", openapi.inference_description),
        ("management", openapi.management_description),
        ("metrics", openapi.metrics_description),
    ],
)
def test_every_port_describes_itself(
    server: ServerProcess, api: str, description: Callable[[], dict[str, Any]]
) -> None:
    found = requests.get(f"{server.urls[api]}/api-description", timeout=60).json()
    assert found == description() == requests.options(f"{server.urls[api]}/", timeout=60).json()
    schemathesis.openapi.from_dict(found).validate()


@pytest.mark.parametrize(
    ("api", "path"), [("inference", "/predictions/linear"), ("management", "/models/linear")]
)
def test_every_model_describes_itself(server: ServerProcess, api: str, path: str) -> None:
    found = requests.options(f"{server.urls[api]}{path}", timeout=60).json()
    schemathesis.openapi.from_dict(found).validate()
    assert any(name.startswith(path) for name in found["paths"])
    assert "{model_name}" not in str(found)
