"""Downloads pinned data sets that are part of packages on PyPI.

    REVIEWS = PackagedData(
        "vaderSentiment==3.3.2", file="vaderSentiment-3.3.2.tar.gz", sha256="5d7c06e0..."
    )
    text = REVIEWS.read("vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt", self.cache)

pip downloads them into a cache, pinned by version and SHA-256. Nothing of the package is installed or
run.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from torchport.errors import DataError
from torchport.store.files import write_bytes
from torchport.store.hashing import sha256_bytes, sha256_file

DOWNLOAD_TIMEOUT_S = 600


@dataclass(frozen=True)
class PackagedData:
    """One file of one release on PyPI.

    Args:
        requirement: such as "vaderSentiment==3.3.2".
        file: the name of its sdist or wheel.
        sha256: of that file, in hexadecimal.
    """

    requirement: str
    file: str = field(kw_only=True)
    sha256: str = field(kw_only=True)

    def path(self, cache: Path) -> Path:
        """The file in the cache, downloaded if it is missing or has changed.

        Raises:
            DataError: pip cannot get it, or gets something else than what was pinned.
        """
        target = cache / "packages" / self.file
        if target.is_file() and sha256_file(target) == self.sha256:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{self.file}.lock"):
            if not target.is_file() or sha256_file(target) != self.sha256:
                write_bytes(target, self._download())
        return target

    def read(self, member: str, cache: Path) -> bytes:
        """Read one file of the package.

        `a.tar.gz!b.txt` reads b.txt of an archive in the package.

        Raises:
            DataError: as `path`, or the package has no such file.
        """
        outer, _, inner = member.partition("!")
        content = _member(self.path(cache), self.file, outer)
        if not inner:
            return content
        with tempfile.TemporaryDirectory(prefix="torchport-data-") as folder:
            nested = Path(folder) / Path(outer).name
            nested.write_bytes(content)
            return _member(nested, outer, inner)

    def _download(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="torchport-data-") as folder:
            requirements = Path(folder) / "requirements.txt"
            requirements.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n", encoding="utf-8")
            kind = "--only-binary" if self.file.endswith(".whl") else "--no-binary"
            command = [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--require-hashes", kind, ":all:", "--dest", folder),
                *("--requirement", str(requirements)),
            ]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_TIMEOUT_S
                )
            except subprocess.TimeoutExpired as err:
                raise DataError(
                    f"{self.requirement}: pip took more than {DOWNLOAD_TIMEOUT_S} s: is the network there?"
                ) from err
            got = Path(folder) / self.file
            if done.returncode or not got.is_file():
                said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
                raise DataError(
                    f"{self.requirement}: pip cannot download {self.file}: {' '.join(said)[-400:]}: is "
                    "the network there, and pip set up for it?"
                )
            content = got.read_bytes()
        if sha256_bytes(content) != self.sha256:
            raise DataError(
                f"{self.file}: SHA-256 is {sha256_bytes(content)}, pinned is {self.sha256}: not used"
            )
        return content


def _member(path: Path, shown: str, member: str) -> bytes:
    try:
        if path.name.endswith((".whl", ".zip")):
            with zipfile.ZipFile(path) as archive:
                return archive.read(member)
        with tarfile.open(path) as archive:
            file = archive.extractfile(member)
            if file is None:
                raise KeyError(member)
            return file.read()
    except (KeyError, tarfile.TarError, zipfile.BadZipFile) as err:
        raise DataError(f"{shown} has no file {member!r}") from err
