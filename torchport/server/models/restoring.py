"""Unpacks again what somebody has removed of a model's folder.

    restore(model, settings)             # in a thread, before a worker starts

A worker loads the model from there long after it was registered: when another one has died, or when the
model is scaled up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil

from torchport.server.errors import ArchiveRefused
from torchport.server.models.unpacked import UnpackedModel
from torchport.server.models.unpacking import unpack
from torchport.server.settings.settings import ServerSettings

logger = logging.getLogger(__name__)


def restore(model: UnpackedModel, settings: ServerSettings) -> None:
    """Put the missing files of a model's folder back, from its archive in the store.

    Raises:
        ApiError: as `unpack`; ArchiveRefused if the archive is another than the one that was registered.
        OSError: the folder cannot be written.
    """
    with model.restoring:
        missing = model.missing()
        if not missing:
            return
        logger.warning(
            "%s %s: %d of %d files are gone from %s: unpacked again from %s",
            *(model.name, model.version, len(missing), len(model.files), model.folder, model.url),
        )
        work = model.folder.parent
        work.mkdir(parents=True, exist_ok=True)
        handler = model.handler if model.handler_given else None
        again = unpack(model.url, settings, work, name=model.name, handler=handler)
        try:
            if again.entries != model.entries:
                raise ArchiveRefused(
                    f"files of {model.name} {model.version} are gone from {model.folder}, and the store's "
                    f"{model.url} is another archive by now: unregister the version, and register it again"
                )
            for name in missing:
                target = model.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # What only pip had put there may have another name today.
                with contextlib.suppress(FileNotFoundError):
                    os.replace(again.folder / name, target)
        finally:
            shutil.rmtree(again.folder, ignore_errors=True)
