"""Which database the settings mean: one file, or one server."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote

from pydantic import SecretStr

from authsvc.errors import SettingsError
from authsvc.postgresql_url import PostgreSQLTarget, parse_postgresql_url

DEFAULT_FILE = Path("~/.auth.sqlite3")

# Also what `Path` makes of a URL, which has one slash less.
_LIKE_A_URL = re.compile(r"[A-Za-z0-9+]{2,}:/|:|file:")


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A database in a file."""

    path: Path


DatabaseTarget = SqliteFile | PostgreSQLTarget


def choose_database(
    *,
    sqlite_path: Path | None,
    postgresql_url: SecretStr | None,
    database_url: SecretStr | None,
    password: SecretStr | None,
) -> DatabaseTarget:
    """The one database that is set, or the default file. ``password`` completes a server's URL.

    Raises SettingsError when two are set, or one cannot be understood.
    """
    given = {
        "AUTH_SQLITE_PATH": sqlite_path,
        "AUTH_POSTGRESQL_URL": postgresql_url,
        "AUTH_DATABASE_URL": database_url,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise SettingsError(
            f"{' and '.join(names)}: two databases are set; keep the one that is meant"
        )
    if postgresql_url is not None:
        return _server(postgresql_url, "AUTH_POSTGRESQL_URL", password)
    if database_url is None:
        return _file(sqlite_path or DEFAULT_FILE, "AUTH_SQLITE_PATH")
    scheme, _, _ = database_url.get_secret_value().strip().partition(":")
    if scheme.lower() in ("postgresql", "postgres"):
        return _server(database_url, "AUTH_DATABASE_URL", password)
    return _file(_path_of(database_url), "AUTH_DATABASE_URL")


def choose_gate(url: SecretStr | None, database: DatabaseTarget) -> PostgreSQLTarget | None:
    """The server that is asked for revisions: the database itself unless ``url`` is set.

    ``url`` is another way to the same server, past a pooler; what it leaves out of credentials
    is the database's. None for a file. Raises SettingsError.
    """
    if isinstance(database, SqliteFile):
        return None
    if url is None:
        return database
    gate = parse_postgresql_url(url.get_secret_value(), setting="AUTH_POSTGRESQL_GATE_URL")
    if gate.user is None:
        gate = replace(gate, user=database.user)
    if gate.password is None and gate.user == database.user:
        gate = replace(gate, password=database.password)
    return gate


def mode_over_network(database: DatabaseTarget | None) -> str | None:
    """The sslmode of a connection that leaves this machine, None where none does."""
    if not isinstance(database, PostgreSQLTarget):
        return None
    away = any(not (host.startswith("/") or is_loopback(host)) for host, _ in database.hosts)
    return database.sslmode if away else None


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can be at, or get to, this host."""
    return host == "localhost" or (is_address(host) and ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether this is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _server(url: SecretStr, setting: str, password: SecretStr | None) -> PostgreSQLTarget:
    target = parse_postgresql_url(url.get_secret_value(), setting=setting)
    if password is None:
        return target
    if target.password is not None:
        raise SettingsError(
            f"{setting} and AUTH_POSTGRESQL_PASSWORD: the password is set twice; keep one"
        )
    return replace(target, password=password.get_secret_value())


def _path_of(url: SecretStr) -> Path:
    text = url.get_secret_value().strip()
    path = unquote(text.removeprefix("sqlite:///"))
    if text.startswith("sqlite:///") and path and "?" not in text and "\0" not in path:
        return Path(path)
    raise SettingsError(
        "AUTH_DATABASE_URL: must be postgresql://..., or sqlite:////absolute/path for a file"
    )


def _file(path: Path, setting: str) -> SqliteFile:
    if _LIKE_A_URL.match(str(path)):
        raise SettingsError(
            f"{setting}: must name a file, because what is kept in memory alone would be lost"
            " with each connection; a URL belongs in AUTH_DATABASE_URL"
        )
    try:
        return SqliteFile(path.expanduser().absolute())
    except RuntimeError:
        pass  # Python's own words about home directories name no setting.
    raise SettingsError(f"{setting}: there is no home directory for '~'; set an absolute path")
