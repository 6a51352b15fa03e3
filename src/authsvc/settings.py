"""The settings: read once, checked whole, frozen, handed down.

Every setting is called ``AUTH_`` and the field's name in capitals. Where it is looked for, the
first that has it wins: the environment, a file named by ``AUTH_<SECRET>_FILE``, ``.env``, the
default. An empty value means that it is not set.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from pydantic import (
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from authsvc.credentials import parse_client_key
from authsvc.errors import SettingsError
from authsvc.postgresql_url import PostgreSQLTarget, parse_postgresql_url

PREFIX = "AUTH_"

Names = Annotated[tuple[str, ...], NoDecode]
"""Several values in one variable, separated by commas."""


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """A database in a file."""

    path: Path


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """A setting whose subject does not exist in this version: accepted only at what means off.

    ``off`` None: there is no such value, so any is accepted and said to have no effect.
    """

    off: object = None


_UNBUILT: dict[str, Unbuilt] = {
    "enable_encryption": Unbuilt(off=False),
    "encryption_key": Unbuilt(),
    "encryption_old_keys": Unbuilt(),
    "enable_audit_logging": Unbuilt(),
    "audit_checks": Unbuilt(off="off"),
    "audit_key": Unbuilt(),
    "audit_old_keys": Unbuilt(),
    "checkpoint_private_key": Unbuilt(),
    "allow_cors": Unbuilt(off=False),
    "cors_origins": Unbuilt(),
    "rate_limit_profile": Unbuilt(off="off"),
    "rate_limit_check": Unbuilt(off="off"),
    "rate_limit_read": Unbuilt(off="off"),
    "rate_limit_write": Unbuilt(off="off"),
    "rate_limit_role_create": Unbuilt(off="off"),
    "rate_limit_token": Unbuilt(off="off"),
    "rate_limit_auth_failure": Unbuilt(off="off"),
    "rate_limit_storage_url": Unbuilt(),
    "jwt_secret_key": Unbuilt(),
    "jwt_old_secret_keys": Unbuilt(),
    "jwt_private_key": Unbuilt(),
    "jwt_old_public_keys": Unbuilt(),
    "jwt_issuer": Unbuilt(),
    "jwt_audience": Unbuilt(),
    "jwt_access_token_expire_minutes": Unbuilt(),
    "jwt_refresh_token_expire_days": Unbuilt(),
    "cache_mb": Unbuilt(),
    "check_short_way": Unbuilt(),
    "postgresql_gate_url": Unbuilt(),
}

# Set by test runs, and by Kubernetes for a Service that is called "auth".
_IGNORED = ("AUTH_TEST_", "AUTH_SERVICE_", "AUTH_PORT")
_CLOSE = 0.8


class Settings(BaseSettings):
    """All settings. Built by ``load_settings``, or from keyword arguments alone."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False
    )

    environment: Literal["local", "production"] = "local"

    sqlite_path: Path | None = None
    postgresql_url: SecretStr | None = None
    database_url: SecretStr | None = None
    postgresql_password: SecretStr | None = None
    postgresql_gate_url: SecretStr | None = None
    postgresql_pgbouncer: bool = False
    postgresql_pool_size: int = Field(default=10, ge=1, le=500)

    client_key: SecretStr | None = None
    client_registration: Literal["open", "closed"] | None = None

    server_host: str = "127.0.0.1"
    server_port: int = Field(default=5000, ge=1, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    trusted_proxies: Names = ()
    allowed_hosts: Names = ()
    public_url: str | None = Field(default=None, pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$")

    strict_names: bool = False
    xss_protection_header: Literal["0", "1", "1; mode=block"] = "1; mode=block"
    docs_enabled: bool = True
    debug_mode: bool = False
    cache_mb: int = Field(default=256, ge=1)
    check_short_way: bool = True

    jwt_secret_key: SecretStr | None = None
    jwt_old_secret_keys: SecretStr | None = None
    jwt_private_key: SecretStr | None = None
    jwt_old_public_keys: SecretStr | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_access_token_expire_minutes: int = Field(default=15, ge=1)
    jwt_refresh_token_expire_days: int = Field(default=7, ge=1)

    enable_encryption: bool = False
    encryption_key: SecretStr | None = None
    encryption_old_keys: SecretStr | None = None

    enable_audit_logging: bool = True
    audit_checks: Literal["off", "deny", "all"] = "off"
    audit_key: SecretStr | None = None
    audit_old_keys: SecretStr | None = None
    checkpoint_private_key: SecretStr | None = None

    allow_cors: bool = False
    cors_origins: Names = ()

    rate_limit_profile: Literal["off", "service", "strict"] = "off"
    rate_limit_check: str = "off"
    rate_limit_read: str = "off"
    rate_limit_write: str = "off"
    rate_limit_role_create: str = "off"
    rate_limit_token: str = "off"  # noqa: S105 - a rate, not a token
    rate_limit_auth_failure: str = "off"
    rate_limit_storage_url: SecretStr | None = None

    _database: SqliteFile | PostgreSQLTarget = PrivateAttr()
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keyword arguments alone: ``load_settings`` reads the rest by the rules above."""
        return (init_settings,)

    @property
    def database(self) -> SqliteFile | PostgreSQLTarget:
        """The one database that is used."""
        return self._database

    @property
    def registration_open(self) -> bool:
        """Whether a key nobody made may make its own tenant by writing.

        By default only where nobody else can reach it: on loopback, with SQLite.
        """
        if self.client_registration is not None:
            return self.client_registration == "open"
        return isinstance(self._database, SqliteFile) and _is_loopback(self.server_host)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know about these settings, without any secret in it."""
        return self._warnings

    @field_validator("trusted_proxies", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("client_key")
    @classmethod
    def _canonical_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        key = parse_client_key(value.get_secret_value())
        if key is None:
            raise ValueError(
                "is not a version-4 UUID; make one with"
                " python -c 'import uuid; print(uuid.uuid4())'"
            )
        return SecretStr(key)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, unbuilt in _UNBUILT.items():
            if unbuilt.off is not None and getattr(self, name) != unbuilt.off:
                off = str(unbuilt.off).lower()
                raise SettingsError(f"{_env(name)}: not in this version; leave it at '{off}'")
        self._database = self._selected()
        if self.workers > 1 and isinstance(self._database, SqliteFile):
            raise SettingsError(
                "AUTH_WORKERS: SQLite is served by one process, because only one can know at once"
                " what the others changed; set it to 1, or use AUTH_POSTGRESQL_URL"
            )
        if self.environment == "production" and self.debug_mode:
            raise SettingsError("AUTH_DEBUG_MODE: must be false in production")
        return self

    def _selected(self) -> SqliteFile | PostgreSQLTarget:
        given = [
            name
            for name in ("sqlite_path", "postgresql_url", "database_url")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            names = " and ".join(_env(name) for name in given)
            raise SettingsError(f"{names}: two databases are set; keep the one that is meant")
        if self.postgresql_url is not None:
            return self._server(self.postgresql_url.get_secret_value(), "AUTH_POSTGRESQL_URL")
        if self.database_url is not None:
            url = self.database_url.get_secret_value()
            if not url.startswith("sqlite:"):
                return self._server(url, "AUTH_DATABASE_URL")
            path = url.removeprefix("sqlite:///")
            if path == url or not path:
                raise SettingsError("AUTH_DATABASE_URL: a SQLite file is sqlite:////absolute/path")
            return SqliteFile(Path(path).expanduser().absolute())
        path_set = self.sqlite_path or Path("~/.auth.sqlite3")
        return SqliteFile(path_set.expanduser().absolute())

    def _server(self, url: str, setting: str) -> PostgreSQLTarget:
        target = parse_postgresql_url(url, setting=setting)
        if self.postgresql_password is not None:
            if target.password is not None:
                raise SettingsError(
                    f"{setting} and AUTH_POSTGRESQL_PASSWORD: the password is set twice; keep one"
                )
            target = replace(target, password=self.postgresql_password.get_secret_value())
        return target


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _env(field: str) -> str:
    return PREFIX + field.upper()


def _is_secret(field: str) -> bool:
    return "SecretStr" in str(Settings.model_fields[field].annotation)


def load_settings(
    env: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")
) -> Settings:
    """The settings of this process: ``env`` (default: the environment) over ``env_file``.

    Raises SettingsError, which names settings and never shows a secret.
    """
    warnings: list[str] = []
    values = _from_environment(os.environ if env is None else env, warnings)
    if env_file is not None and env_file.is_file():
        production = values.get("environment") == "production"
        from_file = _from_dotenv(env_file)
        production = production or from_file.get("environment") == "production"
        _check_mode(env_file, warnings, refuse=production)
        values = from_file | values
    warnings += [
        f"{_env(name)} has no effect in this version"
        for name, unbuilt in _UNBUILT.items()
        if unbuilt.off is None and name in values
    ]
    settings = build_settings(**values)
    settings._warnings = tuple(warnings)
    return settings


def build_settings(**values: Any) -> Settings:
    """Settings from values by field name alone. Raises SettingsError for what cannot be used."""
    try:
        return Settings(**values)
    except ValidationError as error:
        sentences = []
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            name = _env(str(problem["loc"][0])) if problem["loc"] else "The settings"
            sentences.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
        # The cause holds what was given, which may be a secret.
        raise SettingsError("; ".join(sentences)) from None


def _from_environment(env: Mapping[str, str], warnings: list[str]) -> dict[str, str]:
    known = {_env(name): name for name in Settings.model_fields}
    files = {f"{_env(name)}_FILE": name for name in Settings.model_fields if _is_secret(name)}
    values: dict[str, str] = {}
    for variable, value in env.items():
        upper = variable.upper()
        if not upper.startswith(PREFIX) or upper.startswith(_IGNORED) or not value:
            continue
        if upper in known:
            values[known[upper]] = value
        elif upper not in files:
            _unknown(variable, [*known, *files], warnings)
    for variable, name in files.items():
        path = env.get(variable)
        if not path:
            continue
        if name in values:
            raise SettingsError(f"{_env(name)} and {variable}: both are set; keep one")
        values[name] = _read_secret(variable, Path(path))
    return values


def _unknown(variable: str, known: list[str], warnings: list[str]) -> None:
    close = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=_CLOSE)
    if close:
        raise SettingsError(f"{variable}: there is no such setting; is {close[0]} meant?")
    warnings.append(f"{variable}: there is no such setting; see .env.example")


def _read_secret(variable: str, path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise SettingsError(f"{variable}: the file cannot be read ({reason})") from None
    if not text:
        raise SettingsError(f"{variable}: the file is empty")
    return text


def _from_dotenv(env_file: Path) -> dict[str, str]:
    try:
        found = dotenv_values(env_file, interpolate=False)
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{env_file} cannot be read: make it readable UTF-8 text") from None
    given = {name: value for name, value in found.items() if value}
    known = [_env(name) for name in Settings.model_fields]
    known += [f"{_env(name)}_FILE" for name in Settings.model_fields if _is_secret(name)]
    for variable in given:
        upper = variable.upper()
        if upper.startswith(PREFIX) and not upper.startswith(_IGNORED) and upper not in known:
            near = difflib.get_close_matches(upper, known, n=1, cutoff=0.0)[0]
            raise SettingsError(f"{variable} in {env_file}: no such setting; is {near} meant?")
    return _from_environment(given, [])


def _check_mode(env_file: Path, warnings: list[str], *, refuse: bool) -> None:
    if not stat.S_IMODE(env_file.stat().st_mode) & 0o077:
        return
    sentence = f"{env_file} can be read by other users of this machine: chmod 600 {env_file}"
    if refuse:
        raise SettingsError(sentence)
    warnings.append(sentence)
