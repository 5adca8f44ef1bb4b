"""Loads an archive's model in process: notebooks, batch jobs, `torchport infer`.

    with torchport.load("model_store/linear-1.0.mar") as model:
        model.predict([4.0])                              # [14.17]
        model.predict(Path("seven.png").read_bytes(), k=3)

It needs no server, and no torch if the backend is ONNX Runtime.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from torchport.archive.contents import ArchiveContents, extract, inspect_archive
from torchport.errors import ArchiveError, BackendError, BadRequest
from torchport_runtime.options import BACKEND_PRECISIONS, BackendOptions, artifact_suffix

_RUNTIME = "torchport_runtime"


def load(
    archive: str | Path,
    *,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    tensorrt: bool | None = None,
) -> ArchivedModel:
    """Open an archive and load its model.

    The archive's own handler and its own copy of the runtime are used. `backend`, `device`, `threads`,
    `precision` and `tensorrt` override the environment, and that overrides the archive's config.

    Raises:
        ArchiveError: not an archive of torchport, damaged, or its hashes do not match.
        BackendError: the backend or the device is not available.
    """
    contents = inspect_archive(Path(archive))
    if not contents.certificate:
        raise ArchiveError(f"{archive}: no parity.json: not an archive that torchport made")
    if contents.problems:
        raise ArchiveError(f"{archive}: {'; '.join(contents.problems)}: package it again")
    given = {
        "backend": backend,
        "device": device,
        "threads": threads,
        "precision": precision,
        "tensorrt": tensorrt,
    }
    environment = os.environ | {f"TORCHPORT_{k.upper()}": str(v) for k, v in given.items() if v is not None}
    options = BackendOptions.from_config(dict(contents.config.get("torchport") or {}), environment)
    return ArchivedModel(contents, options)


class ArchivedModel:
    """A loaded archive.

    Close it, or use it in a `with` statement, to remove its temporary folder.
    """

    def __init__(self, contents: ArchiveContents, options: BackendOptions) -> None:
        if options.precision == "int8" and not contents.int8_certificate:
            raise BackendError(
                f"{contents.path.name} has no INT8 version: torchport quantize {contents.name}, then "
                "torchport package, make one; or ask for precision float32"
            )
        self.name, self.version, self.options = contents.name, contents.version, options
        self._folder = tempfile.TemporaryDirectory(prefix="torchport-model-")
        folder = Path(self._folder.name)
        self.int8_certificate = contents.int8_certificate
        self.certificate_sha256 = next(e.sha256 for e in contents.entries if e.name == "parity.json")
        graphs = contents.signature["graphs"]
        pairs = [(b, p) for b, precisions in BACKEND_PRECISIONS.items() for p in precisions]
        idle = {f"{graph}{artifact_suffix(*pair)}" for graph in graphs for pair in pairs}
        idle -= {f"{graph}{options.artifact_suffix}" for graph in graphs}
        names = {entry.name for entry in contents.entries} - idle
        try:
            extract(contents.path, folder, only=names)
            (handler_name,) = contents.certificate["binding"]["handler"]
            with _own_runtime(folder) as runtime, _own_module(folder / handler_name) as module:
                self._runtime = runtime
                own = [v for v in vars(module).values() if _is_class_of(module, v)]
            if len(own) != 1:
                raise ArchiveError(
                    f"{contents.path}: {handler_name} has {len(own)} classes of its own, and one is expected"
                )
            self._handler = own[0]()
            with self._translated_errors():
                config = contents.config.get("torchport") or {}
                own_options = runtime.BackendOptions(**options.to_json())
                self._handler.load(folder, own_options, config.get("handler") or {})
                self._handler.warm_up()
        except BaseException:
            self._folder.cleanup()
            raise

    @property
    def folder(self) -> Path:
        """The folder where the archive is unpacked, while this is open."""
        return Path(self._folder.name)

    @property
    def decides(self) -> str:
        """The kind of decision that the handler declares for its answers.

        Empty without a declaration, as in older archives.
        """
        return str(getattr(self._handler, "decides", ""))

    @property
    def devices(self) -> dict[str, str]:
        """The device that each graph really runs on: "cpu" or "cuda:N"."""
        return {name: backend.device for name, backend in self._handler.backends.items()}

    @property
    def providers(self) -> dict[str, str]:
        """The provider that really runs each graph, such as `{"main": "CPUExecutionProvider"}`."""
        return {name: backend.provider for name, backend in self._handler.backends.items()}

    def predict(self, body: Any, **params: Any) -> Any:
        """The answer to one request.

        `body` is JSON-like or bytes, `params` are the query's parameters.

        Raises:
            BadRequest: the reason that a client would get as a 4xx.
            BackendError: the reason that a client would get as a 500.
        """
        (answer,) = self.predict_many([body], **params)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A graph's outputs by name, without the handler.

        Raises:
            BackendError: no graph has this name, or it fails on these inputs.
        """
        if graph not in self._handler.backends:
            raise BackendError(f"graph {graph!r}: one of {', '.join(self._handler.backends)} is expected")
        with self._translated_errors():
            outputs: dict[str, np.ndarray] = self._handler.backends[graph].run(inputs)
        return outputs

    def explain(self, body: Any, **params: Any) -> Any:
        """The answer of `/explanations` to one request.

        Raises:
            BadRequest: as `predict`, or the handler gives no explanations, or the backend no gradients.
            BackendError: as `predict`.
        """
        (answer,) = self._ask([body], params, {"explain": "True"})
        if isinstance(answer, Exception):
            raise answer
        return answer

    def predict_many(self, bodies: Sequence[Any], **params: Any) -> list[Any]:
        """Answers to many requests, run together.

        A request that fails has its exception in its place.
        """
        return self._ask(bodies, params, {})

    def _ask(self, bodies: Sequence[Any], params: Mapping[str, Any], headers: Mapping[str, str]) -> list[Any]:
        fields = {name: str(value) for name, value in params.items()}
        requests = [self._runtime.InferenceRequest({**fields, "body": body}, headers) for body in bodies]
        answers: list[Any] = []
        for answer in self._handler.answer(requests):
            if answer.status == 200:
                # Rows of plain numbers are written together, as JSON already.
                is_text = isinstance(answer.value, bytes) and answer.content_type == "application/json"
                answers.append(json.loads(answer.value) if is_text else answer.value)
            elif answer.status < 500:
                answers.append(BadRequest(answer.value["message"], status=answer.status))
            else:
                answers.append(BackendError(answer.value["message"]))
        return answers

    def close(self) -> None:
        self._folder.cleanup()

    def __enter__(self) -> ArchivedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Turn errors of the archive's own runtime into the library's classes."""
        try:
            yield
        except self._runtime.TorchportError as err:
            raise BackendError(str(err)) from err


@contextmanager
def _own_module(path: Path) -> Iterator[ModuleType]:
    """Import an archive's handler from exactly this file.

    Another module of the same name is set aside meanwhile. The handler's module is always removed in
    the end.
    """
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ArchiveError(f"the handler {path.name} is no Python module: package it again")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.pop(name, None)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.modules.pop(name, None)
        if before is not None:
            sys.modules[name] = before


def _is_class_of(module: ModuleType, value: object) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__


@contextmanager
def _own_runtime(folder: Path) -> Iterator[ModuleType]:
    """Import `torchport_runtime` from `folder`, next to the library's own.

    So several archives, each with its own runtime, can be loaded in one process.
    """
    ours = {n: m for n, m in sys.modules.items() if n == _RUNTIME or n.startswith(f"{_RUNTIME}.")}
    for name in ours:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    writes_byte_code, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    importlib.invalidate_caches()
    try:
        runtime = importlib.import_module(_RUNTIME)
        if Path(runtime.__file__ or "").parent.parent != folder:
            raise ArchiveError("the archive carries no torchport_runtime: package it again")
        for name in getattr(runtime, "__all__", ()):
            getattr(runtime, name)  # It imports what is asked for, and later it would find the library's own.
        yield runtime
    finally:
        sys.dont_write_bytecode = writes_byte_code
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n == _RUNTIME or n.startswith(f"{_RUNTIME}.")]:
            del sys.modules[name]
        sys.modules.update(ours)
