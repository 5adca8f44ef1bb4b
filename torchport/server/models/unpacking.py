"""Inspects and unpacks an archive of the store, without running its code.

    model = unpack(url="linear-1.0.mar", store=Path("model_store"), folder=work, ...)

Archives are refused that are damaged, too large, or would write outside of their folder. So are archives
of torchport with a wrong hash.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from torchport.archive.contents import ArchiveContents, extract, inspect_archive
from torchport.errors import ArchiveError
from torchport.server.errors import ArchiveNotFound, ArchiveRefused, Forbidden, InternalError, InvalidRequest
from torchport.server.models.admission import require_trusted
from torchport.server.models.installing import install_requirements
from torchport.server.models.semantics import require_known_runtime, require_known_semantics
from torchport.server.models.unpacked import UnpackedModel
from torchport.server.settings.settings import ServerSettings
from torchport_runtime.options import MOST_THREADS

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,126}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")
_HANDLER = re.compile(
    r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(:[A-Za-z_][A-Za-z0-9_]*)?"
)
"""A handler: `file.py`, `folder/file.py`, `file.py:function`, `package.module`, or the name of one of
TorchServe's."""

_FILES = ("configFile", "requirementsFile", "modelFile", "serializedFile")
_REQUIRED = ("configFile", "requirementsFile")
"""Keys of a manifest that name files. Those of `_REQUIRED` are read by the server: the files must exist."""


def find_archive(url: str, settings: ServerSettings) -> Path:
    """The file that `url` names.

    `url` is an archive's name in the store, or a `file://` URL of an archive there.

    Raises:
        InvalidRequest: `url` is empty or malformed, holds `..`, or has another scheme.
        Forbidden: `allowed_urls` does not allow the URL, or the file is outside of the store, and no link
            of the store's leads to it in a folder of `archive_roots`.
        ArchiveNotFound: the archive is missing.
    """
    if not url:
        raise InvalidRequest("empty url")
    if ".." in url or "\0" in url:
        raise InvalidRequest(f"Relative path is not allowed in url: {url}")
    store = settings.model_store.resolve()
    try:
        parts = urlsplit(url)
    except ValueError as err:
        raise InvalidRequest(f"{url[:200]}: not a URL ({err})") from err
    if parts.scheme and "://" in url:
        if not any(_matches(pattern, url) for pattern in settings.allowed_urls):
            raise Forbidden(f"Given URL {url} does not match any allowed URL(s)")
        if parts.scheme != "file":
            raise InvalidRequest(
                f"{url}: models are loaded from the store only: put the archive into it and give its name"
            )
        path = Path(unquote(parts.path))
    else:
        path = store / url
    try:
        real = path.resolve()
        found = real.is_file()
    except (OSError, RuntimeError, ValueError) as err:  # RuntimeError: a link that leads to itself.
        raise InvalidRequest(f"{url[:200]}: not a file's name ({err})") from err
    if not real.is_relative_to(store):
        if not path.is_symlink() or not path.parent.resolve().is_relative_to(store):
            raise Forbidden(f"{url} is outside of the model store")
        if not any(real.is_relative_to(Path(root).resolve()) for root in settings.archive_roots):
            raise Forbidden(
                f"{url} is outside of the model store: its link leads to none of the folders of archive_roots"
            )
    if not found:
        raise ArchiveNotFound(f"Model not found at: {url}")
    return real


def _matches(pattern: str, url: str) -> bool:
    try:
        return re.fullmatch(pattern, url, re.IGNORECASE) is not None
    except re.error as err:
        raise Forbidden(f"allowed_urls: {pattern!r} is no regular expression ({err})") from err


def unpack(
    url: str,
    settings: ServerSettings,
    work: Path,
    *,
    name: str | None = None,
    handler: str | None = None,
) -> UnpackedModel:
    """Inspect an archive and unpack it into a new folder below `work`.

    `name` and `handler` override the archive's own.

    Raises:
        ApiError: as `find_archive`; ArchiveRefused, with the reason, if the archive must not be run;
            InternalError if it cannot be written, for example on a full disk.
    """
    path = find_archive(url, settings)
    try:
        before = _identity(path)
        contents = inspect_archive(path)
        certified = require_trusted(contents, settings)
        require_known_semantics(contents.config)
        runtime = require_known_runtime(contents.manifest.get("runtime"))
        threads = _thread_count(contents.config)
        # As it was asked for: a link's own name, not that of the file that it leads to.
        model = _identified(contents, Path(url), name, handler or "", settings.default_service_handler or "")
        folder = Path(tempfile.mkdtemp(prefix=f"{model['name']}-{model['version']}-", dir=work))
        try:
            extract(path, folder)
            if _identity(path) != before:
                raise ArchiveRefused(f"{path.name} changed while it was read: try again")
            requirements = contents.manifest["model"].get("requirementsFile")
            if requirements and settings.install_py_dep_per_model:
                install_requirements(model["name"], folder, requirements, settings)
            elif requirements:
                logger.info(
                    "%s: its %s is not installed (install_py_dep_per_model=false)", path.name, requirements
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except ArchiveError as err:
        raise ArchiveRefused(str(err).replace(f"{path.parent}/", "")) from err
    except OSError as err:
        is_full = err.errno in (errno.ENOSPC, errno.EDQUOT)
        raise InternalError(
            f"{path.name} cannot be unpacked: {err.strerror or err}", http_status=507 if is_full else None
        ) from err
    return UnpackedModel(
        name=model["name"],
        version=model["version"],
        url=url,
        folder=folder,
        handler=model["handler"],
        envelope=settings.service_envelope,
        runtime=runtime,
        config=contents.config,
        thread_count=threads,
        certified=certified,
        handler_given=handler is not None,
        entries=contents.entries,
        files=tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())),
    )


def _thread_count(config: Mapping[str, Any]) -> int:
    """The number of threads that a config gives a worker; 0 if it leaves it to the server."""
    own = config.get("torchport")
    threads = own.get("threads") if isinstance(own, Mapping) else 0
    if not isinstance(threads, int):
        return 0
    if isinstance(threads, bool) or not 0 <= threads <= MOST_THREADS:
        raise ArchiveRefused(
            f"torchport.threads is {threads}: a whole number up to {MOST_THREADS} is expected"
        )
    return threads


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _identified(
    contents: ArchiveContents, path: Path, name: str | None, handler: str, default_handler: str
) -> dict[str, str]:
    """The model's name, version and handler, all checked.

    Names must fit into a URL's path, and the manifest's files must lie in the archive.
    """
    found = {
        "name": name or contents.name or path.name.removesuffix(".mar"),
        "version": contents.version or "1.0",
        "handler": handler or str(contents.manifest["model"].get("handler", "")),
    }
    for key, pattern in (("name", _NAME), ("version", _VERSION)):
        if not pattern.fullmatch(found[key]):
            raise ArchiveRefused(
                f"{path.name}: model {key} {found[key][:80]!r}: letters, digits and . _ + - are expected"
            )
    if not found["handler"]:
        if not default_handler:
            raise ArchiveRefused(
                f"{path.name}: its manifest names no handler, and default_service_handler is not set"
            )
        found["handler"] = default_handler
    elif not _HANDLER.fullmatch(found["handler"]):
        raise ArchiveRefused(
            f"{path.name}: handler {found['handler'][:80]!r}: the name of a file of the archive is expected, "
            "such as handler.py or handler.py:function"
        )
    names = {entry.name for entry in contents.entries}
    folder, _, file = found["handler"].partition(":")[0].rpartition("/")
    module = file.removesuffix(".py")
    if folder and not names & {f"{module}.py", f"{module}/__init__.py", f"{folder}/{module}.py"}:
        raise ArchiveRefused(
            f"{path.name}: handler {found['handler'][:80]!r}: neither {module[:80]}.py nor "
            f"{folder[:80]}/{module[:80]}.py is in the archive"
        )
    for key in _FILES:
        named = contents.manifest["model"].get(key)
        if named and (not isinstance(named, str) or _leads_out(named)):
            raise ArchiveRefused(f"{path.name}: its {key} {str(named)[:80]!r} leads out of the archive")
        if named and key in _REQUIRED and named not in names:
            raise ArchiveRefused(f"{path.name}: its {key} {named[:80]!r} is not in the archive")
    return found


def _leads_out(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\0" in name
