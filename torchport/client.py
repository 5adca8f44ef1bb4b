"""A typed client for TorchServe's REST API, for any server with it.

client = Client()                                  # http://127.0.0.1:8080 and :8081
client.predict("linear", json=[4.0])               # [14.17]
client.predict("digits_resnet18", body=Path("seven.png").read_bytes(), params={"k": "3"})
"""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from torchport.errors import RequestError, ServerError

RETRIED = (503,)
"""HTTP statuses that mean "later". They are retried with growing pauses, or after the answer's
Retry-After."""


class Client:
    """Sends requests to one server, on kept connections.

    Args:
        url, management_url: of the inference and the management API.
        timeout: seconds to wait for a connection (5 at most), and for an answer.
        retries: maximum number of retries if the server answers 503 or does not accept a connection.
        key_file: TorchServe's `key_file.json`, if token authorisation is on.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        management_url: str = "http://127.0.0.1:8081",
        *,
        timeout: float = 60.0,
        retries: int = 3,
        key_file: Path | None = None,
    ) -> None:
        self.url, self.management_url = url.rstrip("/"), management_url.rstrip("/")
        self._timeout = timeout
        self._key_file = key_file
        self._session = requests.Session()
        # Proxies and credentials of the environment are for other hosts than a model server of one's own.
        self._session.trust_env = False
        # A request that was sent is not sent again unless the server said 503: it did not take it.
        retry = Retry(
            total=retries,
            connect=retries,
            read=False,
            status=retries,
            status_forcelist=RETRIED,
            allowed_methods=None,
            backoff_factor=0.2,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=32))

    def ping(self) -> str:
        """The server's health in its own words, such as "Healthy".

        Raises:
            ServerError: no server there. RequestError: the server says no.
        """
        return str(self._json("GET", f"{self.url}/ping").get("status", ""))

    def predict(
        self,
        model: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        content_type: str = "application/octet-stream",
        params: Mapping[str, str] | None = None,
        version: str | None = None,
        explain: bool = False,
    ) -> Any:
        """The answer to one request: decoded JSON, or bytes for other answers.

        `explain` asks `/explanations` in place of `/predictions`. `params` are sent as fields of a
        multipart form, with the body as its part `data`, because TorchServe hides a query from its
        handlers.

        Raises:
            ServerError: no server there, or no answer in time.
            RequestError: an error status; it has the status and the server's reason.
        """
        if (json is None) == (body is None):
            raise ValueError("predict takes either json=... or body=...")
        if json is not None:
            body, content_type = json_module.dumps(json).encode(), "application/json"
        path = f"{self.url}/{'explanations' if explain else 'predictions'}/{quote(model, safe='')}"
        path += f"/{quote(version, safe='')}" if version else ""
        if params:
            parts = {"data": ("data", body, content_type)} | {n: (None, v) for n, v in params.items()}
            return _decoded(self._send("POST", path, parts=parts))
        return _decoded(self._send("POST", path, body, {"Content-Type": content_type}))

    def models(self) -> dict[str, str]:
        """Archive names of all models' default versions, by model name."""
        found: dict[str, str] = {}
        token: str | None = None
        while True:
            params = {"limit": "100"} | ({"next_page_token": token} if token else {})
            page = self._json("GET", f"{self.management_url}/models", params)
            found |= {model["modelName"]: model["modelUrl"] for model in page["models"]}
            token = page.get("nextPageToken")
            if not token:
                return found

    def describe(self, model: str, version: str = "all") -> list[dict[str, Any]]:
        """Settings and workers of every version, or of one."""
        path = f"{self.management_url}/models/{quote(model, safe='')}/{quote(version, safe='')}"
        versions = self._json("GET", path)
        return list(versions)

    def set_default(self, model: str, version: str) -> None:
        """Make a version the default, which requests without a version reach."""
        path = f"{self.management_url}/models/{quote(model, safe='')}/{quote(version, safe='')}/set-default"
        self._send("PUT", path)

    def reload(self, models: Sequence[str] = (), *, retire: bool = False) -> dict[str, Any]:
        """Have `torchport serve` pick up new and changed archives of its store; what it did.

        Args:
            models: names, as `torchport serve --models` takes them; none for what the server started with.
            retire: whether the versions that newer ones take the default from are removed.
        """
        params = {"models": ",".join(models)} | ({"retire": "true"} if retire else {})
        done = self._json("POST", f"{self.management_url}/reload", params)
        return dict(done)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _json(self, method: str, url: str, params: Mapping[str, str] | None = None) -> Any:
        response = self._send(method, url, params=params)
        try:
            return response.json()
        except ValueError as err:
            raise ServerError(f"{url} answered something that is not JSON: is it a model server?") from err

    def _send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        parts: Mapping[str, Any] | None = None,
    ) -> requests.Response:
        try:
            response = self._session.request(
                method,
                url,
                data=body,
                files=parts,
                headers={**(headers or {}), **self._authorisation(url)},
                params=params,
                timeout=(min(self._timeout, 5.0), self._timeout),
                allow_redirects=False,
            )
        except requests.Timeout as err:
            raise ServerError(f"{url}: no answer within {self._timeout:g} s") from err
        except requests.ConnectionError as err:
            raise ServerError(
                f"no server answers at {url}: start one with torchport serve (or make serve)"
            ) from err
        except requests.RequestException as err:
            raise ServerError(f"{url}: {err}") from err
        if response.status_code >= 300:
            reason = _reason(response)
            raise RequestError(
                f"{method} {url} was refused with {response.status_code}: {reason}",
                response.status_code,
                reason,
            )
        return response

    def _authorisation(self, url: str) -> dict[str, str]:
        if self._key_file is None:
            return {}
        kind = "management" if url.startswith(self.management_url) else "inference"
        try:
            # Read anew each time: TorchServe rewrites the file when keys are renewed.
            key = json_module.loads(self._key_file.read_text(encoding="utf-8"))[kind]["key"]
        except FileNotFoundError as err:
            raise ServerError(
                f"no key file {self._key_file}: TorchServe writes it where it was started, with tokens on"
            ) from err
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise ServerError(f"{self._key_file}: not a readable TorchServe key file") from err
        return {"Authorization": f"Bearer {key}"}


def _decoded(response: requests.Response) -> Any:
    kind = response.headers.get("Content-Type", "")
    if kind and "json" not in kind and not kind.startswith("text/"):
        return response.content
    try:
        return response.json()
    except ValueError:
        return response.text if kind.startswith("text/") else response.content


def _reason(response: requests.Response) -> str:
    try:
        answer = response.json()
        return str(answer["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:400] or response.reason
