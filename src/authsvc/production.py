"""What settings must be in production, and what a person should know about them elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from authsvc.database_choice import SqliteFile, mode_over_network
from authsvc.errors import SettingsError
from authsvc.network_names import ANY
from authsvc.rate_budgets import OFF
from authsvc.settings_sources import variable


def refuse_in_production(settings: Any) -> None:
    """Raise SettingsError for what is only fit for trying out."""
    for sentence in refusals(settings):
        raise SettingsError(sentence)


def refusals(settings: Any) -> Iterator[str]:
    """What production does not start with: a sentence each, without any secret in it."""
    if settings.jwt_secret_key is None and settings.jwt_private_key is None:
        yield "AUTH_JWT_SECRET_KEY: must be set; openssl rand -base64 32 makes one"
    if settings.debug_mode:
        yield "AUTH_DEBUG_MODE: must be false in production"
    if ANY in settings.cors_origins:
        yield "AUTH_CORS_ORIGINS: '*' is for trying out; name the origins"
    if not settings.enable_audit_logging:
        yield "AUTH_ENABLE_AUDIT_LOGGING: must be true in production"
    for setting, mode in _ways_to_servers(settings):
        if mode == "disable":
            yield (
                f"{setting}: sslmode=disable sends everything to another machine in the clear,"
                " which production does not; use sslmode=verify-full"
            )


def advice(settings: Any) -> Iterator[str]:
    """What does no harm to start with, and is hardly meant."""
    if settings.cors_origins and not settings.allow_cors:
        yield "AUTH_CORS_ORIGINS: without effect, because AUTH_ALLOW_CORS is false"
    if isinstance(settings.database, SqliteFile):
        idle = [
            variable(name)
            for name in type(settings).model_fields
            if name.startswith("postgresql_") and name in settings.model_fields_set
        ]
        if idle:
            yield f"{', '.join(idle)}: without effect, because the database is a SQLite file"
    if (
        settings.workers > 1
        and settings.rate_limit_profile != OFF
        and settings.rate_limit_storage_url is None
    ):
        yield (
            "AUTH_RATE_LIMIT_STORAGE_URL: not set, so each of several workers counts alone and"
            " lets through its share of every limit; name a Redis"
        )
    if settings.environment == "production":
        for setting, mode in _ways_to_servers(settings):
            if mode in ("allow", "prefer"):
                yield (
                    f"{setting}: without sslmode=require or stronger the connection may be in"
                    " the clear; use sslmode=verify-full"
                )
        if settings.registration_open:
            yield (
                "AUTH_CLIENT_REGISTRATION: open, so whoever reaches the service can make a"
                " tenant; set it to closed"
            )


def _ways_to_servers(settings: Any) -> Iterator[tuple[str, str]]:
    """The setting and the sslmode of every connection that leaves this machine."""
    url = "postgresql_url" if settings.postgresql_url is not None else "database_url"
    for name, target in ((url, settings.database), ("postgresql_gate_url", settings.gate)):
        mode = mode_over_network(target)
        if mode is not None and getattr(settings, name) is not None:
            yield variable(name), mode
