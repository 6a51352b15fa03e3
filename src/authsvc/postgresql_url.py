"""PostgreSQL connection URLs as libpq writes them, understood for asyncpg.

Operators write ``postgresql://user:password@host/database?sslmode=require`` because that is what
every PostgreSQL tool takes. asyncpg refuses most of those parameters and SQLAlchemy hands them
through, so they are translated here, once, for both ways of connecting.

No connection is opened and the environment is not read; only the certificate files a URL names
are, so that a wrong path stops the start and not the first reconnection.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote_to_bytes

from sqlalchemy import URL

from authsvc.errors import SettingsError

DEFAULT_PORT = 5432

_WEAK_MODES = ("disable", "allow", "prefer")
_VERIFYING_MODES = ("verify-ca", "verify-full")
_MODES = (*_WEAK_MODES, "require", *_VERIFYING_MODES)
_SESSION_ATTRS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_PARAMETERS = frozenset(
    {
        "application_name",
        "channel_binding",
        "connect_timeout",
        "host",
        "options",
        "port",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
    }
)

_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NEVER_BARE = re.compile(r"[\s\x00-\x1f\x7f#]")
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_OPTION = re.compile(r"([A-Za-z_][A-Za-z0-9_.]*)=(.*)", re.DOTALL)
_OPTION_WORD = re.compile(r"(?:[^\s\\]|\\.)+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PostgreSQLTarget:
    """A PostgreSQL database and how to reach it.

    ``hosts`` are (host, port) pairs in the order they are tried; a host beginning with ``/`` is
    the directory of a Unix socket; none at all means the driver's own default, a local socket.
    ``options`` are asyncpg's, without address and credentials. The password is in no repr.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None = field(repr=False)
    database: str | None
    sslmode: str
    options: Mapping[str, Any] = field(repr=False, hash=False)

    @property
    def url(self) -> URL:
        """The URL for SQLAlchemy, without password and parameters: those are `connect_args`."""
        host, port = None, None
        if self.hosts and not self.hosts[0][0].startswith("/"):
            host, port = self.hosts[0]
        return URL.create(
            "postgresql+asyncpg", username=self.user, host=host, port=port, database=self.database
        )

    @property
    def connect_args(self) -> dict[str, Any]:
        """What `url` cannot carry, as ``create_async_engine(..., connect_args=)`` takes it."""
        arguments = self.driver_kwargs()
        arguments.pop("user", None)
        arguments.pop("database", None)
        if self.url.host is not None and len(self.hosts) == 1:
            arguments.pop("host")
            arguments.pop("port")
        return arguments

    def driver_kwargs(self) -> dict[str, Any]:
        """Everything, as the keyword arguments of a bare ``asyncpg.connect``."""
        arguments: dict[str, Any] = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in self.options.items()
        }
        if len(self.hosts) == 1:
            arguments["host"], arguments["port"] = self.hosts[0]
        elif self.hosts:
            arguments["host"] = [host for host, _ in self.hosts]
            arguments["port"] = [port for _, port in self.hosts]
        account = {"user": self.user, "password": self.password, "database": self.database}
        return arguments | {name: value for name, value in account.items() if value is not None}


def parse_postgresql_url(text: str, *, setting: str = "AUTH_POSTGRESQL_URL") -> PostgreSQLTarget:
    """Read a libpq-style URL.

    Raises SettingsError naming ``setting`` and never a part of the URL, except the name of a
    parameter once it is certain that it is not a piece of a password.
    """
    return _Reader(setting).read(text)


class _Reader:
    """One URL being read; holds only the name of the setting that errors have to mention."""

    def __init__(self, setting: str) -> None:
        self.setting = setting

    def error(self, sentence: str) -> SettingsError:
        return SettingsError(f"{self.setting}: {sentence}")

    def unreadable(self) -> SettingsError:
        return self.error(
            "this is not a URL that can be read. Inside a user name, a password or a value the "
            "reserved characters must be percent-encoded (@ as %40, : as %3A, / as %2F, ? as %3F, "
            "# as %23, % as %25, a space as %20); or leave the password out of the URL and set "
            "AUTH_POSTGRESQL_PASSWORD to it as it is"
        )

    def read(self, text: str) -> PostgreSQLTarget:
        scheme, mark, rest = text.strip().partition("://")
        if not mark or scheme.lower() not in ("postgresql", "postgres"):
            raise self.error("the URL must begin with postgresql:// (without a driver's name)")
        if _NEVER_BARE.search(rest) or _LONE_PERCENT.search(rest):
            raise self.unreadable()
        before_query, _, query = rest.partition("?")
        authority, _, database = before_query.partition("/")
        credentials, _, hosts = authority.rpartition("@")
        # A reserved character inside a password ends a part too early and leaves the real '@'
        # in a later one. Only without such a remainder may a parameter's name be shown.
        if "@" in credentials + database + query or "/" in database:
            raise self.unreadable()
        user, _, password = credentials.partition(":")
        parameters = self.parameters(query)
        sslmode, options = self.options(parameters)
        target_hosts = self.hosts(hosts, parameters)
        if target_hosts and all(host.startswith("/") for host, _ in target_hosts):
            # TLS does not exist on a Unix socket; libpq ignores what is said about it there.
            options["ssl"] = False
            options.pop("direct_tls", None)
        return PostgreSQLTarget(
            hosts=target_hosts,
            user=self.decoded(user) or None,
            password=self.decoded(password) or None,
            database=self.decoded(database) or None,
            sslmode=sslmode,
            options=options,
        )

    def decoded(self, text: str) -> str:
        raw = unquote_to_bytes(text)
        decoded = raw.decode("utf-8", errors="replace")
        if decoded.encode() != raw or "\0" in decoded:
            raise self.error("a percent-encoded part of the URL is not text in UTF-8")
        return decoded

    def hosts(self, text: str, parameters: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
        if not text:
            names = parameters["host"].split(",") if "host" in parameters else []
            ports = parameters["port"].split(",") if "port" in parameters else []
            if ports and (not names or len(ports) not in (1, len(names))):
                raise self.error("'port' needs 'host', and one port in all or one for each host")
            if len(ports) == 1:
                ports *= len(names)
            return tuple(
                (self.host(name), self.port(ports[index] if ports else ""))
                for index, name in enumerate(names)
            )
        if "host" in parameters or "port" in parameters:
            raise self.error("the host and port stand before the '?' or behind it, not both")
        found = []
        for part in text.split(","):
            if part.startswith("["):
                name, bracket, port = part[1:].partition("]")
                if not bracket or not (port == "" or port.startswith(":")):
                    raise self.unreadable()
                port = port[1:]
            else:
                name, _, port = part.partition(":")
            found.append((self.host(self.decoded(name)), self.port(port)))
        return tuple(found)

    def host(self, name: str) -> str:
        if name.startswith("/") or _HOST_NAME.fullmatch(name):
            return name
        try:
            address = ip_address(name)
        except ValueError:
            address = None
        if address is None:
            raise self.unreadable()
        return name

    def port(self, text: str) -> int:
        if not text:
            return DEFAULT_PORT
        if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
            raise self.unreadable()
        return int(text)

    def parameters(self, query: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for pair in query.split("&") if query else ():
            name, mark, value = pair.partition("=")
            if not mark or not re.fullmatch(r"[A-Za-z_]{1,40}", name):
                raise self.unreadable()
            if name not in _PARAMETERS:
                raise self.error(f"the parameter '{name}' is not supported; remove it")
            if name in found:
                raise self.error(f"the parameter '{name}' is given twice; keep one")
            if not value:
                raise self.error(f"the parameter '{name}' is empty; remove it or give it a value")
            found[name] = self.decoded(value)
        return found

    def one_of(self, parameters: Mapping[str, str], name: str, *allowed: str) -> str | None:
        value = parameters.get(name)
        if value is not None and value not in allowed:
            raise self.error(f"'{name}' must be one of {', '.join(allowed)}")
        return value

    def options(self, parameters: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        """The effective sslmode and asyncpg's options."""
        sslmode = self.one_of(parameters, "sslmode", *_MODES)
        if sslmode is None:
            # As in libpq: trusting the system's authorities makes sense only with the name checked.
            sslmode = "verify-full" if parameters.get("sslrootcert") == "system" else "prefer"
        options: dict[str, Any] = {"ssl": self.tls(sslmode, parameters)}
        if self.one_of(parameters, "sslnegotiation", "postgres", "direct") == "direct":
            if sslmode in _WEAK_MODES:
                raise self.error("sslnegotiation=direct needs sslmode=require or stronger")
            options["direct_tls"] = True
        if self.one_of(parameters, "channel_binding", "disable", "prefer", "require") == "require":
            raise self.error(
                "channel_binding=require cannot be kept by this driver; remove it and use "
                "sslmode=verify-full, which also stops a machine in the middle"
            )
        if "connect_timeout" in parameters:
            seconds = parameters["connect_timeout"]
            if not re.fullmatch(r"[0-9]{1,4}", seconds) or int(seconds) == 0:
                raise self.error("'connect_timeout' must be a number of seconds from 1 to 9999")
            options["timeout"] = int(seconds)
        attrs = self.one_of(parameters, "target_session_attrs", *_SESSION_ATTRS)
        if attrs is not None:
            options["target_session_attrs"] = attrs
        settings = self.server_settings(parameters)
        if settings:
            options["server_settings"] = settings
        return sslmode, options

    def server_settings(self, parameters: Mapping[str, str]) -> dict[str, str]:
        settings: dict[str, str] = {}
        words = [
            re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL)
            for word in _OPTION_WORD.findall(parameters.get("options", ""))
        ]
        for flag, assignment in zip(words[::2], [*words[1::2], ""], strict=False):
            match = _OPTION.fullmatch(assignment)
            if flag != "-c" or match is None:
                raise self.error("'options' may hold only '-c name=value', any number of times")
            settings[match[1]] = match[2]
        if "application_name" in parameters:
            settings["application_name"] = parameters["application_name"]
        return settings

    def tls(self, sslmode: str, parameters: Mapping[str, str]) -> bool | str | ssl.SSLContext:
        """asyncpg's ``ssl`` argument."""
        if sslmode in _WEAK_MODES:
            for name in ("sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcrl"):
                if name in parameters:
                    raise self.error(
                        f"'{name}' has no effect below sslmode=require; add sslmode=verify-full"
                    )
            # asyncpg cannot begin in the clear and retry with TLS, so 'allow' is 'prefer'.
            return False if sslmode == "disable" else "prefer"
        root = parameters.get("sslrootcert")
        if sslmode == "require" and root not in (None, "system"):
            sslmode = "verify-ca"
        elif sslmode != "verify-full" and root == "system":
            raise self.error("sslrootcert=system needs sslmode=verify-full")
        elif sslmode == "verify-ca" and root is None:
            raise self.error(
                "sslmode=verify-ca needs sslrootcert with your authority's file: any public "
                "authority vouches for any host; or use sslmode=verify-full"
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # asyncpg sets this on its own contexts alone, and sslnegotiation=direct cannot do without.
        context.set_alpn_protocols(["postgresql"])
        context.check_hostname = sslmode == "verify-full"
        if sslmode == "require":
            context.verify_mode = ssl.CERT_NONE
        elif root in (None, "system"):
            context.load_default_certs()
        else:
            self.load(context, "sslrootcert", root)
        if "sslcrl" in parameters:
            if sslmode not in _VERIFYING_MODES:
                raise self.error("'sslcrl' needs sslmode=verify-full or verify-ca")
            self.load(context, "sslcrl", parameters["sslcrl"])
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        self.load_client_certificate(context, parameters)
        return context

    def load(self, context: ssl.SSLContext, name: str, path: str | None) -> None:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ValueError) as error:
            reason = _reason(error)
        else:
            return
        raise self.error(f"the file of '{name}' cannot be used ({reason})")

    def load_client_certificate(
        self, context: ssl.SSLContext, parameters: Mapping[str, str]
    ) -> None:
        certificate = parameters.get("sslcert")
        if certificate is None:
            for name in ("sslkey", "sslpassword"):
                if name in parameters:
                    raise self.error(f"'{name}' needs 'sslcert'")
            return
        # A function, because without one OpenSSL would ask for the pass phrase on the terminal.
        pass_phrase = parameters.get("sslpassword", "")
        try:
            context.load_cert_chain(certificate, parameters.get("sslkey"), lambda: pass_phrase)
        except (OSError, ValueError) as error:
            reason = _reason(error)
        else:
            return
        raise self.error(
            f"the files of 'sslcert' and 'sslkey' cannot be used ({reason}); "
            "an encrypted key needs 'sslpassword'"
        )


def _reason(error: Exception) -> str:
    """Why a certificate file was refused, without its path."""
    if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        return "it is not what it should be, in PEM"
    return error.strerror or "it cannot be read"
