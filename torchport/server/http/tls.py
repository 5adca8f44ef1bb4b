"""The TLS context of `config.properties`: certificate, key and clients' CA.

The files are PEM. A clients' CA turns mutual TLS on.
"""

from __future__ import annotations

import ssl

from torchport.errors import ServerError
from torchport.server.settings.settings import ServerSettings


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """The TLS context for `https://` addresses; None without any.

    Raises:
        ServerError: the certificate is missing or cannot be read, or there is a clients' CA but no
        `https://`.
    """
    if all(address.scheme == "http" for address in settings.http_addresses):
        if settings.client_ca_file is not None:
            raise ServerError(
                "client_ca_file asks for certificates of clients: the addresses are to be https://"
            )
        return None
    if settings.certificate_file is None or settings.private_key_file is None:
        raise ServerError(
            "https:// needs certificate_file and private_key_file, PEM files (a Java keystore is read by "
            "openssl pkcs12 -in KEYSTORE -out FILE.pem)"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without this, a key with a password would have the server wait for somebody to type it.
        context.load_cert_chain(settings.certificate_file, settings.private_key_file, password=lambda: "")
        if settings.client_ca_file is not None:
            context.load_verify_locations(settings.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as err:
        raise ServerError(
            f"certificate_file, private_key_file or client_ca_file cannot be read: {err}"
        ) from err
    return context
