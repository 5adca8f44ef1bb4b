"""Reads Java's properties files, as TorchServe reads its `config.properties`.

    read_properties(Path("config.properties"), os.environ)      # {"inference_address": "http://..."}

Format: java.util.Properties.load. `$$NAME$$` in a value stands for an environment variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torchport.errors import ServerError

_PAIR = re.compile(r"(?P<key>(?:\\.|[^\\:=\s])*)(?:\s*[=:]\s*|\s+|$)(?P<value>.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_VARIABLE = re.compile(r"\$\$([^$]+[^$])\$\$")


def read_properties(path: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Keys and values of the file; with `environ`, variables in the values are replaced.

    Raises:
        ServerError: the file cannot be read, or names a variable that is not set.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise ServerError(f"cannot read {path}: {getattr(err, 'strerror', None) or err}") from err
    found = parse_properties(text)
    if environ is None:
        return found
    return {key: _resolved(path, value, environ) for key, value in found.items()}


def parse_properties(text: str) -> dict[str, str]:
    """Keys and values of a properties text.

    If a key comes twice, the last one counts.
    """
    found = {}
    for line in _logical_lines(text):
        match = _PAIR.match(line)
        if match:
            found[_unescaped(match["key"])] = _unescaped(match["value"])
    return found


def _logical_lines(text: str) -> Iterator[str]:
    """Lines without comments and blank ones; a trailing backslash joins two."""
    pending = ""
    # Not splitlines(): it takes a form feed and others for ends of lines, which a value may have.
    for raw in re.split(r"\r\n|\r|\n", text):
        line = raw.lstrip(" \t\f")
        if not pending and (not line or line[0] in "#!"):
            continue
        pending += line
        trailing = len(pending) - len(pending.rstrip("\\"))
        if trailing % 2:
            pending = pending[:-1]
            continue
        yield pending
        pending = ""
    if pending:
        yield pending


def _unescaped(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) == 5:
            return chr(int(code[1:], 16))
        return _ESCAPED.get(code, code)

    return _ESCAPE.sub(replace, text)


def _resolved(path: Path, value: str, environ: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise ServerError(f"{path}: $${match[1]}$$ names an environment variable that is not set")
        return environ[match[1]]

    return _VARIABLE.sub(replace, value)
