"""Serves the archive that a configuration would become, to measure it.

with Bench(recipe, archive) as bench, bench.serve(configuration) as ask:
    ask(16, 2.0)                     # Measured under 16 connections, for 2 seconds
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import yaml

from torchport.optimize.tune.load import CONNECTIONS, Ask, Measured, http_messages, put_load
from torchport.package.configuration import Configuration
from torchport.package.packaging import CONFIG
from torchport.recipe.contract import Recipe
from torchport.recipe.shipped import packaged_folder
from torchport.store.folders import Store
from torchport.targets import torchport_serve
from torchport.targets.guard import guard
from torchport_runtime.cores import available_cores
from torchport_runtime.options import ARTIFACT_SUFFIX


class Bench:
    """Serves one configuration after another, each alone.

    `content` are the bytes of the model's archive. `store` has the archive that is served at the
    moment.
    """

    def __init__(self, recipe: Recipe, content: bytes, *, warm_up: float = 0.3) -> None:
        self._recipe, self._content, self._warm_up = recipe, content, warm_up
        self._opened = ExitStack()

    def __enter__(self) -> Bench:
        folder = Path(self._opened.enter_context(tempfile.TemporaryDirectory(prefix="torchport-tune-")))
        self._base = folder / "base.mar"
        self._base.write_bytes(self._content)
        self.store = Store(folder / "store")
        self.store.path.mkdir()
        self._run = folder / "run"
        self._opened.enter_context(guard(self._run))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    @contextmanager
    def serve(self, configuration: Configuration) -> Iterator[Ask]:
        """Start a server on free ports, yield a function that measures it.

        The server is stopped in the end.

        Raises:
            ServerError: it does not start, or gives no answers.
        """
        # A number, not the server's choice: all of the workers are ready before anything is measured.
        configuration = configuration.on(available_cores())
        self._write_archive(configuration)
        with torchport_serve.start(
            self.store,
            self._run,
            config=packaged_folder("deploy") / "config.properties",
            settings={"enable_grpc": "false"},
        ) as server:
            url = server.urls["inference"]
            messages = http_messages(url, self._recipe)

            def ask(connections: int, seconds: float) -> Measured:
                return put_load(
                    url, messages, connections=connections, seconds=seconds, warm_up=self._warm_up
                )

            for connections in (1, min(configuration.workers * configuration.batch_size, CONNECTIONS[-1])):
                ask(connections, self._warm_up)
            yield ask

    def _write_archive(self, configuration: Configuration) -> None:
        """Write the archive with this configuration, without artifacts of others."""
        idle = set(ARTIFACT_SUFFIX.values()) - {ARTIFACT_SUFFIX[configuration.backend]}
        if configuration.precision == "int8":
            idle.add(ARTIFACT_SUFFIX["onnxruntime"])
        left_out = {f"{graph}{suffix}" for graph in self._recipe.signatures() for suffix in idle}
        target = self.store.archive(self._recipe.name, self._recipe.version)
        with zipfile.ZipFile(self._base) as base, zipfile.ZipFile(target, "w") as archive:
            for entry in base.infolist():
                if entry.filename == CONFIG:
                    # A shadow's artifacts are not there, and it is not what is measured.
                    told = configuration.model_config(self._recipe, shadow="off")
                    config = yaml.safe_dump(told, sort_keys=False)
                    archive.writestr(entry, config)
                elif entry.filename not in left_out:
                    archive.writestr(entry, base.read(entry))
