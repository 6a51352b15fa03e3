"""The settings: read once, checked whole, frozen, handed down.

Every setting is called ``AUTH_`` and the field's name in capitals. Where it is looked for, the
first that has it wins: the environment, a file named by ``AUTH_<SECRET>_FILE``, for secrets the
stores (a folder, AWS Secrets Manager, Vault; ``docs/secrets.md``), ``.env``, the default. An empty
value means that it is not set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
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

from authsvc.audit_settings import AuditSettings, read_audit_settings
from authsvc.credentials import parse_client_key
from authsvc.database_choice import (
    DatabaseTarget,
    SqliteFile,
    choose_database,
    choose_gate,
    is_address,
    is_loopback,
)
from authsvc.encryption import NO_MASTER_KEYS, MasterKeys
from authsvc.encryption_settings import read_master_keys
from authsvc.errors import SettingsError
from authsvc.keyring import Key, read_keys
from authsvc.network_names import (
    check_host_patterns,
    check_networks,
    check_origins,
    is_host_name,
)
from authsvc.postgresql_url import PostgreSQLTarget
from authsvc.production import refuse
from authsvc.rate_budgets import BUDGETS, OFF, parse_rates
from authsvc.settings_sources import PREFIX, Provenance, read_sources
from authsvc.settings_sources import variable as _env

__all__ = ["Settings", "SqliteFile", "build_settings", "load_settings"]

Names = Annotated[tuple[str, ...], NoDecode]
"""Several values in one variable, separated by commas."""


_STORAGES = ("redis://", "rediss://", "unix://")


class Settings(BaseSettings):
    """All settings. Built by ``load_settings``, or from keyword arguments alone."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=False,
    )

    environment: Literal["local", "production"] = "local"

    sqlite_path: Path | None = None
    postgresql_url: SecretStr | None = None
    database_url: SecretStr | None = None
    postgresql_password: SecretStr | None = None
    postgresql_gate_url: SecretStr | None = None
    postgresql_pgbouncer: bool = False
    postgresql_pool_size: int = Field(default=10, ge=1, le=500)

    secrets_dir: Path | None = None
    aws_secret_id: str | None = None
    vault_addr: str | None = Field(default=None, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")
    vault_mount: str = "secret"
    vault_path: str = "auth/config"
    vault_token: SecretStr | None = None
    vault_role_id: str | None = None
    vault_secret_id: SecretStr | None = None
    vault_namespace: str | None = None
    vault_ca_file: Path | None = None

    client_key: SecretStr | None = None
    client_registration: Literal["open", "closed"] | None = None

    server_host: str = "127.0.0.1"
    server_port: int = Field(default=5000, ge=1, le=65535)
    workers: int = Field(default=1, ge=1, le=256)
    trusted_proxies: Annotated[Names, AfterValidator(check_networks)] = ()
    allowed_hosts: Annotated[Names, AfterValidator(check_host_patterns)] = ()
    public_url: str | None = Field(default=None, pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")

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
    jwt_access_token_expire_minutes: int = Field(default=15, ge=1, le=60)
    jwt_refresh_token_expire_days: int = Field(default=7, ge=1, le=90)

    enable_encryption: bool = False
    encryption_key: SecretStr | None = None
    encryption_old_keys: SecretStr | None = None

    enable_audit_logging: bool = True
    audit_checks: Literal["off", "deny", "all"] = "off"
    audit_key: SecretStr | None = None
    audit_old_keys: SecretStr | None = None
    checkpoint_private_key: SecretStr | None = None
    checkpoint_file: Path | None = None
    alert_rules: Path | None = None
    webhook_url: SecretStr | None = None
    webhook_secret: SecretStr | None = None
    webhook_allow_private: bool = False

    allow_cors: bool = False
    cors_origins: Annotated[Names, AfterValidator(check_origins)] = ()

    rate_limit_profile: Literal["off", "service", "strict"] = "service"
    rate_limit_check: str | None = None
    rate_limit_read: str | None = None
    rate_limit_write: str | None = None
    rate_limit_role_create: str | None = None
    rate_limit_token: str | None = None
    rate_limit_auth_failure: str | None = None
    rate_limit_storage_url: SecretStr | None = None

    _database: DatabaseTarget = PrivateAttr()
    _gate: PostgreSQLTarget | None = PrivateAttr(default=None)
    _token_keys: tuple[Key, ...] = PrivateAttr(default=())
    _audit: AuditSettings = PrivateAttr(default_factory=AuditSettings)
    _master_keys: MasterKeys = PrivateAttr(default=NO_MASTER_KEYS)
    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _provenance: Provenance = PrivateAttr(default_factory=Provenance)

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
    def database(self) -> DatabaseTarget:
        """The one database that is used."""
        return self._database

    @property
    def gate(self) -> PostgreSQLTarget | None:
        """The server that is asked for revisions over a connection of its own; None for a file."""
        return self._gate

    @property
    def token_keys(self) -> tuple[Key, ...]:
        """The keys of access tokens that are set, the one that signs first."""
        return self._token_keys

    @property
    def audit(self) -> AuditSettings:
        """The audit keys, the key of checkpoints and the rules of alerts, as they are used."""
        return self._audit

    @property
    def master_keys(self) -> MasterKeys:
        """The keys that the tenants' data keys are wrapped under, the one that wraps first."""
        return self._master_keys

    @cached_property
    def registration_open(self) -> bool:
        """Whether a key nobody made may write; by default on loopback with SQLite alone."""
        if self.client_registration is not None:
            return self.client_registration == "open"
        return isinstance(self._database, SqliteFile) and is_loopback(self.server_host)

    @property
    def provenance(self) -> Provenance:
        """Where each secret that is set came from, by field name; never what it is."""
        return self._provenance

    @classmethod
    def secret_names(cls) -> list[str]:
        """The settings whose values are never shown."""
        return [
            name for name, field in cls.model_fields.items() if "SecretStr" in str(field.annotation)
        ]

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

    @field_validator(*(f"rate_limit_{name}" for name in BUDGETS))
    @classmethod
    def _rates(cls, value: str | None) -> str | None:
        if value is not None:
            parse_rates(value)
        return value

    @field_validator("rate_limit_storage_url")
    @classmethod
    def _storage(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(_STORAGES):
            raise ValueError(f"must begin with one of {', '.join(_STORAGES)}")
        return value

    @field_validator("server_host")
    @classmethod
    def _address(cls, value: str) -> str:
        if not is_host_name(value) and not is_address(value):
            raise ValueError("must be an address or a host name alone, such as 127.0.0.1 or ::")
        return value

    @field_validator("server_port", mode="before")
    @classmethod
    def _not_a_service_link(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("tcp://"):
            raise ValueError(
                "was set by Kubernetes for a Service called auth-server;"
                " give the pod 'enableServiceLinks: false'"
            )
        return value

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
        self._database = choose_database(
            sqlite_path=self.sqlite_path,
            postgresql_url=self.postgresql_url,
            database_url=self.database_url,
            password=self.postgresql_password,
        )
        self._gate = choose_gate(self.postgresql_gate_url, self._database)
        if self.workers > 1 and isinstance(self._database, SqliteFile):
            raise SettingsError(
                "AUTH_WORKERS: SQLite is served by one process, because only one can know at once"
                " what the others changed; set it to 1, or use AUTH_POSTGRESQL_URL"
            )
        if self.allow_cors and not self.cors_origins:
            raise SettingsError(
                "AUTH_CORS_ORIGINS: must name the origins that AUTH_ALLOW_CORS is about,"
                " such as https://app.example.com"
            )
        self._token_keys = read_keys(self)
        self._audit = read_audit_settings(self)
        self._master_keys = read_master_keys(self)
        self._warnings = tuple(self._advice())
        return self

    def _advice(self) -> Iterator[str]:
        if self.cors_origins and not self.allow_cors:
            yield "AUTH_CORS_ORIGINS: without effect, because AUTH_ALLOW_CORS is false"
        alone = self.workers > 1 and self.rate_limit_storage_url is None
        if alone and self.rate_limit_profile != OFF:
            yield (
                "AUTH_RATE_LIMIT_STORAGE_URL: not set, so each of several workers counts alone and"
                " lets through its share of every limit; name a Redis"
            )
        if isinstance(self._database, SqliteFile):
            idle = [
                _env(name)
                for name in type(self).model_fields
                if name.startswith("postgresql_") and name in self.model_fields_set
            ]
            if idle:
                yield f"{', '.join(idle)}: without effect, because the database is a SQLite file"


def load_settings(
    env: Mapping[str, str] | None = None,
    env_file: Path | None = Path(".env"),
    *,
    refuse_weak: bool = True,
) -> Settings:
    """The settings of this process: ``env`` (default: the environment) over ``env_file``.

    ``refuse_weak`` False: take also what production refuses, to be looked at and not served.
    Raises SettingsError, which names settings and never shows a secret.
    """
    found = read_sources(
        os.environ if env is None else env,
        env_file,
        names=Settings.model_fields,
        secrets=Settings.secret_names(),
    )
    settings = _parsed(found.values)
    settings._provenance = found.provenance
    if refuse_weak:
        _judge(settings)
    warnings = list(settings.warnings)
    if found.provenance.open_env_file is not None and settings.environment != "production":
        warnings.append(f"{env_file}: other users of this machine have access to it; chmod 600 it")
    if found.unknown:
        warnings.append(f"{', '.join(found.unknown)}: no such settings; see .env.example")
    settings._warnings = tuple(warnings)
    return settings


def build_settings(**values: Any) -> Settings:
    """Settings from values by field name alone. Raises SettingsError for what cannot be used."""
    settings = _parsed(values)
    _judge(settings)
    return settings


def _judge(settings: Settings) -> None:
    if settings.environment == "production":
        settings._warnings = (*settings.warnings, *refuse(settings))


def _parsed(values: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        sentences = [
            _sentence(problem["loc"], problem["msg"])
            for problem in error.errors(
                include_url=False, include_context=False, include_input=False
            )
        ]
    # Not from within the handler: the error holds what was given, which may be a secret, and
    # would hang on to this one as its context.
    raise SettingsError("; ".join(sentences))


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    name = _env(str(location[0])) if location else "The settings"
    if message == "Extra inputs are not permitted":
        return f"{name}: there is no such setting"
    message = message.removeprefix("Value error, ").replace("Input should", "must", 1)
    return f"{name}: {message}"
