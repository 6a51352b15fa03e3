"""What settings may name of the network: hosts, proxies' networks, web pages' origins.

Nothing is rewritten to fit: a form that would never match is refused. Raised are ValueErrors
with a sentence that goes behind the setting's name.
"""

from __future__ import annotations

import ipaddress
import re

ANY = "*"

_host = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?").fullmatch
_bracketed = re.compile(r"\[[0-9A-Fa-f:.]+\]").fullmatch
# RFC 6454, section 6.2, for the two schemes that web pages come by.
_origin = re.compile(
    r"(https?)://(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?"
).fullmatch
_PORTS = {"http": "80", "https": "443"}


def is_host_name(text: str) -> bool:
    """Whether this is a host's name or IPv4 address, and nothing beside it."""
    return _host(text) is not None


def check_networks(entries: tuple[str, ...]) -> tuple[str, ...]:
    """These, each of which is an address or a network."""
    for entry in entries:
        try:
            ipaddress.ip_network(entry)
        except ValueError:
            raise ValueError(
                f"'{entry}' is not an address or a network such as 10.0.1.0/24"
            ) from None
    return entries


def check_host_patterns(entries: tuple[str, ...]) -> tuple[str, ...]:
    """These in lower case, each of which is a host's name, ``*.`` and one, or ``*``."""
    for entry in entries:
        if entry != ANY and not _host(entry.removeprefix("*.")) and not _bracketed(entry):
            raise ValueError(
                f"'{entry}' is not a host name without scheme and port,"
                " such as auth.example.com or *.example.com"
            )
    return tuple(entry.lower() for entry in entries)


def check_origins(entries: tuple[str, ...]) -> tuple[str, ...]:
    """These, each of which is one exact origin as browsers send it, or the only one and ``*``."""
    if ANY in entries and len(entries) > 1:
        raise ValueError("'*' already is every origin: leave the others out, or it")
    for entry in entries:
        found = _origin(entry)
        if entry != ANY and (found is None or found[2] == _PORTS[found[1]]):
            raise ValueError(
                f"'{entry}' is not an origin as browsers send it: scheme and host in lower case,"
                " a port only where it is not the scheme's own, no path; https://app.example.com"
            )
    return entries
