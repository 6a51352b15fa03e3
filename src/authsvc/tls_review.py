"""A look at the certificate that callers of the public address are shown (item 4)."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from authsvc.production import Check

_SECONDS = 5.0
_DAY = 86400.0
_FEWEST_DAYS = 14
_FEW_DAYS = 30
_MEND = "renew it, and let nginx read the new one"


def tls_checks(url: str | None, now: float) -> Iterator[Check]:
    """Connect to the public address as a client does; ``now`` is in seconds since 1970.

    The authorities are those of the system, or of SSL_CERT_FILE.
    """
    parts = urlsplit(url or "")
    if parts.scheme != "https" or not parts.hostname:
        said = "is not https://" if url else "is not set, so nothing can be looked at"
        yield Check(4, "fail", f"AUTH_PUBLIC_URL: {said}", "set it to what callers use")
        return
    address = (parts.hostname, parts.port or 443)
    where = f"{address[0]}:{address[1]}"
    context = ssl.create_default_context()
    # Every version that this machine knows, to see what the other side settles for.
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    try:
        with (
            socket.create_connection(address, _SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address[0]) as secured,
        ):
            version = secured.version() or "unknown"
            shown = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        yield Check(
            4, "fail", f"{where}: the certificate is refused: {error.verify_message}", _MEND
        )
        return
    except OSError as error:
        reason = error.strerror or getattr(error, "reason", None) or type(error).__name__
        yield Check(4, "fail", f"{where}: no TLS connection ({reason})", "start the proxy there")
        return
    if version not in ("TLSv1.2", "TLSv1.3"):
        yield Check(4, "fail", f"{where}: speaks {version}", "ssl_protocols TLSv1.2 TLSv1.3;")
    days = int((ssl.cert_time_to_seconds(str(shown["notAfter"])) - now) // _DAY)
    evidence = f"{where}: {version}, chain and name are good, {days} days left"
    if days <= _FEWEST_DAYS:
        yield Check(4, "fail", evidence, _MEND)
    else:
        yield Check(4, "warn" if days <= _FEW_DAYS else "pass", evidence, "")
