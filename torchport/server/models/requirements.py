"""Reads the `requirements.txt` of an archive without trust.

    requirements = contained_requirements(folder, "requirements.txt")
    requirements.lines                   # ['numpy>=1.26', './wheels/own-1.0-py3-none-any.whl']

pip reads more in such a file than names and versions: other indexes, programs' options, paths anywhere,
the values of environment variables. What reaches outside of the archive's folder and the operator's index
is refused. The rest is written down anew, so that pip cannot read the file otherwise than this module.
"""

from __future__ import annotations

import mimetypes
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement

from torchport.server.errors import ArchiveRefused

MAX_BYTES = 1 << 20
MAX_FILES = 20
"""Maximum bytes of a requirements file, and maximum number of files that name each other."""

_COMMENT = re.compile(r"(^|\s)#.*")
_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")
_CODING = re.compile(rb"coding[:=]\s*(?!utf-?8\b|ascii\b)", re.IGNORECASE)
_HASH = re.compile(r"[a-z0-9]+:[0-9a-f]+")
_PATH = re.compile(
    r"(?P<path>[^;@\[\s]*(/|\.whl|\.zip|\.tar|\.tgz|\.tar\.[a-z0-9]+)[^;@\[\s]*)"
    r"(?P<extras>\[[A-Za-z0-9,._ -]*\])?(?P<marker>\s*;.*)?"
)
"""A path where pip takes one: it has a slash, or the name of a wheel or of packed sources."""

_FLAGS = ("--no-index", "--require-hashes", "--prefer-binary", "--pre")
_PACKAGES = ("--no-binary", "--only-binary")
_FILES = {"-r": "-r", "--requirement": "-r", "-c": "-c", "--constraint": "-c"}
_PAGE = "text/html"
_FOLDERS = ("-f", "--find-links")


@dataclass
class Requirements:
    """What pip may install: its options, and the lines of a requirements and of a constraints file."""

    options: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)


def contained_requirements(folder: Path, name: str) -> Requirements:
    """The requirements of the file `name` in a model's folder, and of the files in it that it names.

    Raises:
        ArchiveRefused: a line reaches outside of the folder, or cannot be read.
    """
    reader = _Reader(folder)
    reader.read(name, reader.found.lines)
    return reader.found


class _Reader:
    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._files = 0
        self.found = Requirements()

    def read(self, name: str, lines: list[str]) -> None:
        """Read a file; its requirements are added to `lines`."""
        self._files += 1
        if self._files > MAX_FILES:
            raise ArchiveRefused(f"{name[:80]}: more than {MAX_FILES} files of requirements")
        for line in _logical_lines(name, self._inside(name, name)):
            if _VARIABLE.search(line):
                raise _refusal(name, line, "it takes the value of an environment variable")
            try:
                words = shlex.split(line)
            except ValueError as err:
                raise _refusal(name, line, f"it cannot be read ({err})") from err
            if not words:
                continue
            if words[0].startswith("-"):
                self._take_options(name, line, words, lines)
            else:
                lines.append(self._requirement(name, line))

    def _take_options(self, name: str, line: str, words: list[str], lines: list[str]) -> None:
        for option, value in _options(words):
            if option in _FLAGS and value is None:
                self.found.options.append(option)
            elif option in _PACKAGES and value:
                self.found.options.append(f"{option}={value}")
            elif option in _FILES and value:
                # Other than paths of requirements, it is relative to the file that names it.
                other = str(PurePosixPath(name).parent / value)
                self._inside(name, other)
                self.read(other, lines if _FILES[option] == "-r" else self.found.constraints)
            elif option in _FOLDERS and value:
                self.found.options.append(f"--find-links={self._wheels(name, line, value)}")
            else:
                raise _refusal(name, line, f"the option {option[:40]} reaches outside of the archive")

    def _requirement(self, name: str, line: str) -> str:
        """A requirement as it is written down anew, with its hashes."""
        text, *more = re.split(r"\s(?=-)", line, maxsplit=1)
        hashes = []
        for option, value in _options(shlex.split(more[0]) if more else []):
            if option != "--hash" or not _HASH.fullmatch(value or ""):
                raise _refusal(name, line, f"the option {option[:40]} reaches outside of the archive")
            hashes.append(f" --hash={value}")
        path = _PATH.fullmatch(text.strip())
        if path is not None:
            where = self._inside(name, path["path"])
            return f"{where}{path['extras'] or ''}{path['marker'] or ''}" + "".join(hashes)
        try:
            found = Requirement(text)
        except InvalidRequirement as err:
            raise _refusal(name, line, "it is no requirement") from err
        if found.url is not None:
            raise _refusal(name, line, "it is loaded from an address")
        return str(found) + "".join(hashes)

    def _wheels(self, name: str, line: str, path: str) -> Path:
        """A folder of wheels. pip follows the links of web pages in it."""
        found = self._inside(name, path)
        if not found.is_dir() or any(mimetypes.guess_type(each.name)[0] == _PAGE for each in found.iterdir()):
            raise _refusal(name, line, "a folder without web pages is expected")
        return found

    def _inside(self, name: str, path: str) -> Path:
        """A file or folder of the archive.

        Raises:
            ArchiveRefused: the path leads out, or to nothing.
        """
        shown = f"{name[:80]}: {path[:80]!r}"
        found = self._folder / path
        if PurePosixPath(path).is_absolute() or "\0" in path or ":" in path:
            raise ArchiveRefused(f"{shown} is outside of the archive{_ALLOW}")
        if not found.resolve().is_relative_to(self._folder):
            raise ArchiveRefused(f"{shown} is outside of the archive{_ALLOW}")
        if not found.exists():
            raise ArchiveRefused(f"{shown} is no requirement, and no file of the archive")
        return found.resolve()


_ALLOW = " (install_py_dep_from_anywhere=true allows it)"


def _refusal(name: str, line: str, why: str) -> ArchiveRefused:
    return ArchiveRefused(f"{name[:80]}: {line[:80]!r}: {why}{_ALLOW}")


def _logical_lines(name: str, path: Path) -> Iterator[str]:
    """A file's lines without comments, those that a backslash continues in one."""
    content = path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_BYTES else None
    if content is None:
        raise ArchiveRefused(f"{name[:80]} is no file of requirements, or over {MAX_BYTES >> 20} MiB")
    # pip reads a file in the encoding that it names; in UTF-7 a comment can be an option.
    if any(_CODING.search(line) for line in content.splitlines()[:2]):
        raise ArchiveRefused(f"{name[:80]}: UTF-8 is expected")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ArchiveRefused(f"{name[:80]}: UTF-8 is expected ({err})") from err
    waiting = ""
    for line in text.splitlines():
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            waiting += line.rstrip("\\")
            continue
        whole, waiting = _COMMENT.sub("", f"{waiting}{line}").strip(), ""
        if whole:
            yield whole
    if waiting.strip():
        yield waiting.strip()


def _options(words: list[str]) -> Iterator[tuple[str, str | None]]:
    """Options with their values: `--name=value`, `--name value`, `-nvalue` and `-n value`."""
    rest = iter(words)
    for word in rest:
        if word in _FLAGS:
            yield word, None
        elif word.startswith("--"):
            option, equals, value = word.partition("=")
            yield option, value if equals else next(rest, None)
        elif word.startswith("-") and len(word) > 2:
            yield word[:2], word[2:]
        else:
            yield word, next(rest, None)
