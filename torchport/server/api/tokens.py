"""Access tokens: TorchServe's keys, key file and rules.

`key_file.json` holds a key for each of the inference, the management and the token API, readable by its
owner only. Keys expire; `GET /token?type=inference`, with the API key, makes a new one.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from torchport.errors import ServerError
from torchport.server.errors import InvalidKey
from torchport.server.settings.settings import ServerSettings
from torchport.store.files import write_bytes

MIN_LENGTH, MIN_CHARACTERS = 24, 10
"""Minimum characters of a key that is given, and minimum different ones among them. The server's own have
32, of 64 different ones."""

_KEY = re.compile(rf"[\x21-\x7e]{{{MIN_LENGTH},}}")
_NEW_KEYS = "Remove the file, and new keys are made"


class KeyKind(Enum):
    """The kinds of keys, by their names in the key file."""

    INFERENCE = "inference"
    MANAGEMENT = "management"
    API = "API"


class Access:
    """The keys of one server.

    If the setting `key_file` names a file that exists, its keys are used. They must be as good as those that
    the server makes.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.enabled = settings.tokens
        self.path = settings.key_file or Path("key_file.json")
        self._lifetime = settings.token_expiration_min * 60
        self._renewing = threading.Lock()
        self._keys: dict[KeyKind, str] = {}
        self._expires: dict[KeyKind, float] = {}
        if self.enabled:
            self._prepare(keep=settings.key_file is not None)

    def _prepare(self, *, keep: bool) -> None:
        if keep and self.path.is_file():
            self._read()
            return
        for kind in KeyKind:
            self.renew(kind, write=False)
        self._write(self._keys, self._expires)

    def require(self, kind: KeyKind, authorization: bytes | None) -> None:
        """Check an `Authorization: Bearer KEY` header.

        Raises:
            InvalidKey: the key is missing, wrong or expired.
        """
        scheme, _, key = (authorization or b"").decode("latin-1").partition(" ")
        held = self._keys.get(kind, "")
        matches = hmac.compare_digest(key.strip().encode(), held.encode()) and bool(held)
        if scheme != "Bearer" or not matches or time.time() >= self._expires.get(kind, float("inf")):
            raise InvalidKey

    def renew(self, kind: KeyKind, *, write: bool = True) -> None:
        """Make a new key and write it to the key file, which may take a slow disk seconds.

        Raises:
            TorchportError: the file cannot be written. The old key stays valid, because the new one could
            not be read.
        """
        with self._renewing:
            keys, expires = dict(self._keys), dict(self._expires)
            keys[kind] = secrets.token_urlsafe(24)
            if kind is not KeyKind.API:
                expires[kind] = time.time() + self._lifetime
            if write:
                self._write(keys, expires)
            self._keys, self._expires = keys, expires

    def _write(self, keys: Mapping[KeyKind, str], expires: Mapping[KeyKind, float]) -> None:
        content: dict[str, Any] = {}
        for kind in (KeyKind.MANAGEMENT, KeyKind.INFERENCE, KeyKind.API):
            content[kind.value] = {"key": keys[kind]}
            if kind in expires:
                until = datetime.fromtimestamp(expires[kind], UTC).isoformat().replace("+00:00", "Z")
                content[kind.value]["expiration time"] = until
        write_bytes(self.path, (json.dumps(content, indent=2) + "\n").encode(), mode=0o600)

    def _read(self) -> None:
        """Take the keys of a file that was given, if it promises what this server's own does.

        Raises:
            ServerError: the message says what is wrong with the file.
        """
        _require_private(self.path)
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            for kind in KeyKind:
                entry = content[kind.value]
                self._keys[kind] = entry["key"]
                if not isinstance(self._keys[kind], str) or not self._keys[kind]:
                    raise ValueError(f"the key of {kind.value} is none")
                if "expiration time" in entry:
                    text = str(entry["expiration time"]).replace("Z", "+00:00")
                    self._expires[kind] = datetime.fromisoformat(text).timestamp()
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as err:
            raise ServerError(f"{self.path}: not a readable TorchServe key file ({err!r})") from err
        self._require_strong()

    def _require_strong(self) -> None:
        for kind, key in self._keys.items():
            where = f"{self.path}: the key of {kind.value}"
            if not _KEY.fullmatch(key) or len(set(key)) < MIN_CHARACTERS:
                raise ServerError(
                    f"{where} can be guessed: at least {MIN_LENGTH} characters, {MIN_CHARACTERS} of them "
                    f"different, are expected, without spaces. {_NEW_KEYS}"
                )
            if kind is not KeyKind.API and kind not in self._expires:
                raise ServerError(f"{where} never expires: an expiration time is expected. {_NEW_KEYS}")
        if len(set(self._keys.values())) < len(self._keys):
            raise ServerError(f"{self.path}: the same key for two APIs: each needs its own. {_NEW_KEYS}")


def _require_private(path: Path) -> None:
    """Refuse a key file that others than its owner can read or write.

    A file of root's may be read by its group: so secrets are mounted for a server that is not root.
    """
    try:
        found = path.stat()
    except OSError as err:
        raise ServerError(f"{path}: not a readable TorchServe key file ({err!r})") from err
    if found.st_uid not in (os.geteuid(), 0):
        raise ServerError(f"{path} is another user's: whoever owns it knows the keys. chown it")
    others = 0o037 if found.st_uid == 0 else 0o077
    if found.st_mode & others:
        mode = stat.S_IMODE(found.st_mode)
        raise ServerError(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}")
