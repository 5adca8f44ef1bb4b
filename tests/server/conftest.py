"""What several of the server's tests share."""

import shutil
from pathlib import Path

import pytest

from tests.server.certificates import write_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with those of `write_certificates`."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make certificates")
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder)
    return folder
