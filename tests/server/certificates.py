"""Certificates for TLS: an authority's, a server's and a client's by it, a stranger's.

write_certificates(folder)
tls_settings(folder)["certificate_file"]
"""

import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2")


def write_certificates(folder: Path) -> None:
    """`ca.pem`; `server.pem` and `client.pem`, signed by it, and `stranger.pem`, signed by `other.pem`; each
    with its `.key`. `locked.key` is the server's with a password."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for name in ("ca", "other"):
        own = ("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl("req", "-x509", *_KEY, "-nodes", *own)
    for name, authority in (("server", "ca"), ("client", "ca"), ("stranger", "other")):
        openssl(
            *("req", "-x509", *_KEY, "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
            *("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
    openssl("ec", "-in", "server.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key")


def tls_settings(folder: Path) -> dict[str, str]:
    """The settings of a server that shows `server.pem`."""
    return {"certificate_file": str(folder / "server.pem"), "private_key_file": str(folder / "server.key")}
