"""Archives for the server's tests, written by hand: a handler file, a manifest, a config."""

import json
import textwrap
import zipfile
from pathlib import Path

import yaml


def write_archive(
    store: Path,
    name: str,
    handler: str,
    *,
    version: str = "1.0",
    config: dict | None = None,
    manifest: dict | None = None,
    files: dict[str, bytes] | None = None,
) -> Path:
    """`store/NAME-VERSION.mar` with `handler` as its `model_handler.py`."""
    model = {"modelName": name, "modelVersion": version, "handler": "model_handler.py"}
    entries = {"model_handler.py": textwrap.dedent(handler).encode(), **(files or {})}
    if config is not None:
        model["configFile"] = "model-config.yaml"
        entries["model-config.yaml"] = yaml.safe_dump(config).encode()
    described = {
        "createdOn": "01/01/1980 00:00:00",
        "runtime": "python",
        "model": model | (manifest or {}),
        "archiverVersion": "0.12.0",
    }
    entries["MAR-INF/MANIFEST.json"] = json.dumps(described).encode()
    store.mkdir(parents=True, exist_ok=True)
    path = store / f"{name}-{version}.mar"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return path
