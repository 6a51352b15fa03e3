"""The application: settings in, an ASGI app out. The one place where the parts are put together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from authsvc import __version__, migrations
from authsvc.api import (
    api_keys,
    audit,
    audit_proof,
    changes,
    checks,
    health,
    keys,
    memberships,
    roles,
    tenant_settings,
    tokens,
)
from authsvc.api.check_path import CheckPath
from authsvc.api.cors import Cors
from authsvc.api.dependencies import Service
from authsvc.api.docs_page import docs_router
from authsvc.api.documented import with_token_schemes
from authsvc.api.middleware import Edge, request_id_of
from authsvc.api.problems import exception_handlers
from authsvc.api.rate_limits import budgets_of_routes
from authsvc.api.security_headers import header_sets
from authsvc.api.well_known import well_known_router
from authsvc.checkpoint_file import CheckpointFile
from authsvc.clock import Clock, system_clock
from authsvc.connections import open_database, open_gate
from authsvc.database import Database
from authsvc.decision_cache import DecisionCache
from authsvc.keyring import Keyring, secret_key
from authsvc.logs import configure_logs
from authsvc.rate_budgets import budgets_of
from authsvc.services.activity import Activity
from authsvc.services.alerts import Alerts
from authsvc.services.checkpoints import CheckpointMaker, refuse_older_state
from authsvc.services.current_state import CurrentState
from authsvc.services.deliveries import Deliveries
from authsvc.services.encryption import require_master_keys, review_encryption
from authsvc.services.grant_use import GrantUse
from authsvc.services.key_use import KeyUse
from authsvc.services.rate_limits import RateLimits
from authsvc.services.tenants import provision_key
from authsvc.services.tokens import Tokens
from authsvc.services.write_queue import WriteQueue
from authsvc.settings import Settings, SqliteFile, load_settings
from authsvc.shared_counts import SharedCounts
from authsvc.sqlite_file import prepare_file
from authsvc.token_secret import local_secret
from authsvc.webhook import Webhook

_DESCRIPTION = """
*May user X do Y?* Define roles, grant permissions to them, make users members, and ask.

Every request under `/api` carries a client key: press **Authorize** and paste yours
(`make run` and `authsvc tenants create` print one), or let the page ask for a short-lived token
with it, as *client_secret*. A key belongs to one tenant; what belongs to another tenant does not
exist for you. A check is answered from the state of *now*: once a change has been answered, no
check is answered from before it.
"""
_TAGS = [
    {"name": "Checks", "description": "May this user do this? One question or thousands."},
    {"name": "Roles", "description": "What users can be in."},
    {"name": "Permissions", "description": "What roles may do."},
    {"name": "Memberships", "description": "Users in roles."},
    {"name": "Hierarchy", "description": "Roles that inherit from roles."},
    {"name": "Changes", "description": "Many writes, all or nothing."},
    {"name": "Keys", "description": "The credentials of the tenant."},
    {"name": "API keys", "description": "Keys for the tenant's own users."},
    {"name": "Settings", "description": "What the tenant has chosen for itself."},
    {"name": "Audit", "description": "Who did what, when and from where."},
    {"name": "Tokens", "description": "Short-lived credentials, asked for with a client key."},
    {"name": "Workflows", "description": "Permissions that are named like workflows."},
    {"name": "Service", "description": "Is the service well?"},
]


class _Application(FastAPI):
    """FastAPI with two things around it: the short way for checks, then ``Edge``.

    ``Edge`` stands outside of everything that answers, also of what answers unhandled errors; the
    short way stands outside of FastAPI itself, whose own entrance costs as much as a whole check.
    """

    edge: Callable[[ASGIApp], ASGIApp]
    short_way: ASGIApp | None = None

    def build_middleware_stack(self) -> ASGIApp:
        return self.edge(super().build_middleware_stack())

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = with_token_schemes(super().openapi())
        return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.short_way or super().__call__)(scope, receive, send)


Watcher = CheckpointMaker | Alerts | Deliveries


def open_watchers(settings: Settings, database: Database, clock: Clock) -> list[Watcher]:
    """What works beside the requests on the audit trail: as much of it as is set."""
    audit, send = settings.audit, settings.webhook_url is not None
    watchers: list[Watcher] = []
    if audit.signs is not None:
        path = settings.checkpoint_file
        file = None if path is None else CheckpointFile(path)
        watchers.append(CheckpointMaker(database, audit.signs, clock, file=file, send=send))
    if audit.rules.any:
        watchers.append(Alerts(database, audit.rules, clock, send=send))
    if settings.webhook_url is not None and settings.webhook_secret is not None:
        webhook = Webhook(
            settings.webhook_url.get_secret_value(),
            settings.webhook_secret.get_secret_value(),
            private=settings.webhook_allow_private,
        )
        watchers.append(Deliveries(database, webhook, clock))
    return watchers


def open_keyring(settings: Settings) -> Keyring:
    """The keys of access tokens; without any in the settings, a secret in a file is made and used.

    Raises StartError.
    """
    keys = settings.token_keys
    # Keys that only verify do not sign.
    if settings.jwt_private_key is None and settings.jwt_secret_key is None:
        target = settings.database
        base = target.path if isinstance(target, SqliteFile) else Path("~/.auth").expanduser()
        keys = (secret_key(local_secret(Path(f"{base}.jwt-secret"))), *keys)
    return Keyring(
        keys,
        issuer=settings.jwt_issuer or settings.public_url or "authsvc",
        audience=settings.jwt_audience or "authsvc",
        lifetime=timedelta(minutes=settings.jwt_access_token_expire_minutes),
    )


def open_rate_limits(settings: Settings, clock: Clock) -> RateLimits:
    """The budgets of the settings, counted in Redis where one is named; connected when started."""
    url = settings.rate_limit_storage_url
    return RateLimits(
        budgets_of(settings),
        shared=None if url is None else SharedCounts(url.get_secret_value()),
        workers=settings.workers,
        wall=time.time if clock is system_clock else lambda: clock().timestamp(),
    )


async def prepare(settings: Settings, *, clock: Clock = system_clock) -> Sequence[str]:
    """Make everything ready to be served; warnings for people.

    A SQLite file is made and migrated here, because it is ours alone. A PostgreSQL whose schema
    is not at head is refused. Then the client key of the settings is provided.
    Raises SettingsError, StartError, Unavailable.
    """
    warnings = list(settings.warnings)
    if isinstance(settings.database, SqliteFile):
        warnings += prepare_file(
            settings.database.path, refuse_open_modes=settings.environment == "production"
        )
    database = open_database(settings)
    try:
        if database.is_sqlite:
            await migrations.migrate(database)
        else:
            await migrations.require_head(database)
        await require_master_keys(database)
        warnings += await review_encryption(database)
        if settings.checkpoint_file is not None:
            await refuse_older_state(database, CheckpointFile(settings.checkpoint_file))
        if settings.client_key is not None:
            key = settings.client_key.get_secret_value()
            await database.write("default", lambda tx: provision_key(tx, key, clock()))
    finally:
        await database.dispose()
    return warnings


def create_app(
    settings: Settings, *, clock: Clock = system_clock, beside_server: bool = False
) -> FastAPI:
    """The service as an ASGI application. Its database must have been prepared (``prepare``).

    ``beside_server``: another process may be serving a SQLite file.
    """
    database = open_database(settings, beside_server=beside_server)
    gate = open_gate(settings, clock)
    current = CurrentState(database, gate, DecisionCache(settings.cache_mb))
    keyring = open_keyring(settings)
    refresh_lifetime = timedelta(days=settings.jwt_refresh_token_expire_days)
    uses = KeyUse(database)
    activity = Activity(
        database,
        clock,
        enabled=settings.enable_audit_logging,
        checks=settings.audit_checks,
    )
    grants = GrantUse(database, clock)
    watchers = [grants, *open_watchers(settings, database, clock)]
    service = Service(
        settings,
        database,
        clock,
        current,
        WriteQueue(database, clock, current),
        Tokens(database, current, keyring, clock, refresh_lifetime, uses),
        open_rate_limits(settings, clock),
        uses,
        activity,
        grants,
        watchers,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await migrations.require_head(database)
        await require_master_keys(database)
        await service.limits.start()
        uses.start()
        activity.start()
        for watcher in watchers:
            watcher.start()
        try:
            yield
        finally:
            for watcher in watchers:
                await watcher.stop()
            await activity.stop()
            await uses.stop()
            await service.limits.stop()
            await gate.stop()
            await database.dispose()

    app = _Application(
        title="authsvc",
        summary="An authorization microservice",
        description=_DESCRIPTION,
        version=__version__,
        license_info={"name": "MIT", "identifier": "MIT"},
        openapi_tags=_TAGS,
        servers=[{"url": settings.public_url}] if settings.public_url else None,
        lifespan=lifespan,
        exception_handlers=exception_handlers(clock),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )

    cors = Cors(settings.cors_origins) if settings.allow_cors else None
    app.edge = partial(
        Edge,
        clock=clock,
        allowed_hosts=settings.allowed_hosts,
        xss_protection=settings.xss_protection_header,
        cors=cors,
    )
    # Strict names are a rule about names, which the short way only knows the plain form of.
    # With every check recorded, each is worth more than the short way saves.
    short = settings.check_short_way and not activity.records_allowed
    if short and not settings.strict_names:
        app.short_way = CheckPath(
            partial(FastAPI.__call__, app),
            current,
            service.tokens,
            service.limits,
            uses,
            grants,
            headers=header_sets(settings.xss_protection_header).data
            + (() if cors is None else cors.always),
            request_id_of=request_id_of,
            allowed_hosts=settings.allowed_hosts,
            records_denied=activity.records_denied,
        )
    app.state.service = service
    # The most asked for first: every route before a match costs its own try.
    for module in (checks, roles, memberships, changes, health):
        app.include_router(module.router)
    well_known = well_known_router(keyring, settings.public_url)
    for module in (api_keys, tenant_settings, audit, audit_proof, tokens):
        app.include_router(module.router)
    for router in (keys.rotation, keys.router, well_known):
        app.include_router(router)
    app.include_router(docs_router(title="authsvc", docs_enabled=settings.docs_enabled))
    app.state.budgets = budgets_of_routes(app, service.limits)
    return app


def from_environment() -> FastAPI:
    """The application with the settings of the environment: what each of several workers loads."""
    settings = load_settings()
    configure_logs(debug=settings.debug_mode)
    return create_app(settings)
