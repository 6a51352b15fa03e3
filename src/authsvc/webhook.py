"""Messages to the operator's webhook: signed, and never to an address inside.

Signed after the Standard Webhooks specification (standardwebhooks.com): ``webhook-id``,
``webhook-timestamp`` and ``webhook-signature``, the last "v1," and the base64 of HMAC-SHA256 over
"id.timestamp.body". A receiver drops what it has seen by its id.

The name is resolved once, every address is judged, and the connection goes to one that was judged:
a name that is answered differently a moment later gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
_MOST_READ = 64 * 1024
_MOST_ADDRESSES = 16

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]
"""Host and port -> its addresses, as text."""


class NotSent(Exception):
    """A message was not taken; the text says why and holds no part of the address or the secret."""


def resolve(host: str, port: int) -> list[str]:
    """What the system's resolver says. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_outside(text: str) -> bool:
    """Whether an address is one of the open internet, and holds none that is not."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return _is_global(address) and all(_is_global(inner) for inner in _inside(address))


def _is_global(address: Address) -> bool:
    # Reserved are also 64:ff9b::/96 and its like, which lead to an IPv4 address (RFC 6052).
    local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified or local
    )


def _inside(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address stands for or leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address] = []
    if address.ipv4_mapped is not None:
        found.append(address.ipv4_mapped)
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found.extend(address.teredo)
    return found


def signing_key(secret: str) -> bytes:
    """The bytes of a secret: base64 after ``whsec_``, the text itself otherwise."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            pass
    return secret.encode()


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where messages go. ``private``: addresses of the own network are allowed, and http."""

    url: str = field(repr=False)
    secret: str = field(repr=False)
    private: bool = False
    resolver: Resolve = resolve
    trust: ssl.SSLContext | None = field(default=None, repr=False)

    def send(self, message_id: str, timestamp: int, body: bytes) -> None:
        """Deliver a message, in a thread of its own: it waits. Raises NotSent."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise NotSent("the address has no such port") from None
        if parts.scheme != "https" and not (self.private and parts.scheme == "http"):
            raise NotSent("the address does not begin with https://")
        if parts.username is not None or parts.password is not None or not host:
            raise NotSent("the address is not that of a host alone")
        connection = self._connect(parts.scheme, host, self._judged(host, port), port)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {
                "content-type": "application/json",
                "user-agent": "authsvc",
                "webhook-id": message_id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": signature(
                    signing_key(self.secret), message_id, timestamp, body
                ),
            }
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read(_MOST_READ)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotSent(f"the receiver does not answer ({type(error).__name__})") from None
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise NotSent(f"the receiver answered {answer.status}")

    def _judged(self, host: str, port: int) -> str:
        try:
            found = list(self.resolver(host, port))[:_MOST_ADDRESSES]
        except (OSError, UnicodeError):
            found = []
        if not found:
            raise NotSent("the host has no address")
        # All of them: one inside means that somebody means it to be reached.
        if not self.private and not all(is_outside(address) for address in found):
            raise NotSent(
                "the host has an address in a private network; set AUTH_WEBHOOK_ALLOW_PRIVATE=true"
                " if that is meant"
            )
        return found[0]

    def _connect(
        self, scheme: str, host: str, address: str, port: int
    ) -> http.client.HTTPConnection:
        """A connection to the address that was judged, whose certificate is the host's."""
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
        try:
            made = socket.create_connection((address, port), CONNECT_SECONDS)
            made.settimeout(ANSWER_SECONDS)
            if scheme == "https":
                context = self.trust or ssl.create_default_context()
                made = context.wrap_socket(made, server_hostname=host)
        except OSError as error:
            raise NotSent(f"the receiver cannot be reached ({type(error).__name__})") from None
        connection.sock = made
        return connection
